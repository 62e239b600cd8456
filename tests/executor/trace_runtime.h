#pragma once
#include <cstddef>

// Accesses to [memory, memory + bytes) count from now on.
void trace_tensor(const char* name, const void* memory, size_t bytes);

// One line a tensor: name, bytes read, sectors read, bytes written, sectors written. Forgets the tensors.
void print_trace();

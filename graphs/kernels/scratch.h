// Working memory of kernels, kept between calls: a fresh large block costs more in page faults than what is computed in it.
#ifndef GLIMPSE_KERNELS_SCRATCH_H
#define GLIMPSE_KERNELS_SCRATCH_H

#include <stddef.h>

// A block of at least bytes, aligned to 64; its contents are anything. Null when there is no memory.
void *gk_scratch_take(size_t bytes);
void gk_scratch_give(void *block);

// Notes, from any part of a call, that there was no memory.
static inline void gk_failed(int *failed) { __atomic_store_n(failed, 1, __ATOMIC_RELAXED); }

#endif

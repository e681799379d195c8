// Linear layers with weights of 4 or 8 bits in blocks, a scale a block: com.microsoft MatMulNBits, accuracy level 4.
#ifndef GLIMPSE_KERNELS_NBITS_H
#define GLIMPSE_KERNELS_NBITS_H

#include <stddef.h>
#include <stdint.h>

// y[rows, n] = x[rows, k] · Wᵀ + bias. weights [n, blocks, block·bits/8] and scales [n, blocks] are the operator's: unsigned, the
// zero point is half the range. Activations are quantized to int8 in blocks of the same length, so a row's result depends on
// that row alone, to the last bit, whatever rows are computed with it.
typedef struct {
  int64_t rows, n, k, blocks, block, bits;
  int64_t row_bytes; // of a row of weights
  const float *x;
  const uint8_t *weights;
  const float *scales;
  const float *bias; // null for none
  int half; // packed scales are float16, which holds all of them exactly
  const uint8_t *packed; // weights and scales as gk_nbits_pack has laid them out; null: they are read where they are
  float *y;
  int *failed; // set to 1 by a part that had no memory

  int amx; // use tiles where that is faster
  // What gk_nbits_prepare lays out in work:
  int64_t padded;  // k up to a multiple of 128
  int8_t *levels;  // quantized activations
  float *steps;    // their scales
  int32_t *sums;   // zero point times the sum of a block's levels
  int64_t panels_a_task;
} gk_nbits;

// Bytes of working memory that a call needs.
size_t gk_nbits_work(const gk_nbits *job);
void gk_nbits_layout(gk_nbits *job, void *work);
// The two phases, each of so many independent parts.
size_t gk_nbits_quantize_parts(const gk_nbits *job);
void gk_nbits_quantize(void *job, size_t part);
size_t gk_nbits_multiply_parts(const gk_nbits *job);
void gk_nbits_multiply(void *job, size_t part);

// Lays weights and scales out in the order in which they are read, a panel of 16 rows at a time; results are the same to the last
// bit. There are ceil(n/16) panels; packed has gk_nbits_packed_bytes.
// Whether every scale is a float16.
int gk_nbits_half_scales(const gk_nbits *job);
size_t gk_nbits_packed_bytes(const gk_nbits *job);
void gk_nbits_pack(const gk_nbits *job, int64_t panel, uint8_t *packed);

#endif

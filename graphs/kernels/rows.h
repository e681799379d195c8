// Linear layers with int8 weights, a scale an output, and activations quantized row by row: glimpse RowLinear, whose definition as
// a function of standard operators every model file that uses it carries.
#ifndef GLIMPSE_KERNELS_ROWS_H
#define GLIMPSE_KERNELS_ROWS_H

#include <stddef.h>
#include <stdint.h>

#include "nbits.h"

// y[rows, n] = x[rows, k] · (weights[n, k] · scales[n])ᵀ + bias; with amx n is at least 16. A row's result depends on that row alone, to the
// last bit. lay's activations are one block the row's length long.
typedef struct {
  gk_nbits lay;
  const int8_t *weights;
  int64_t panels_a_task;
} gk_rows;

// Fills in what follows from lay's rows, n, k and amx.
void gk_rows_plan(gk_rows *job);
size_t gk_rows_work(const gk_rows *job);
void gk_rows_layout(gk_rows *job, void *work);
// Activations are quantized by gk_nbits_quantize of lay; then in independent parts:
size_t gk_rows_multiply_parts(const gk_rows *job);
void gk_rows_multiply(void *job, size_t part);

#endif

#ifndef GLIMPSE_KERNELS_ROWS_OP_H
#define GLIMPSE_KERNELS_ROWS_OP_H
#include "op.h"
void gk_rows_op(gk_op *op);      // RowLinear: fills in what is the operator's own
void gk_rows_bias_op(gk_op *op); // RowLinearBias
#endif

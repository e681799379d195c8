#ifndef GLIMPSE_KERNELS_OPEN_ATTENTION_OP_H
#define GLIMPSE_KERNELS_OPEN_ATTENTION_OP_H
#include "op.h"
void gk_open_attention_op(gk_op *op); // fills in what is the operator's own
#endif

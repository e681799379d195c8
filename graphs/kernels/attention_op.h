#ifndef GLIMPSE_KERNELS_ATTENTION_OP_H
#define GLIMPSE_KERNELS_ATTENTION_OP_H
#include "op.h"
void gk_attention_op(gk_op *op); // fills in what is the operator's own
#endif

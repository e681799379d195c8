// RowLinear and RowLinearBias as custom operators: tensors checked, then rows.c.
#include "op.h"

#if defined(__x86_64__)

#include <stdlib.h>
#include <string.h>

#include "rows.h"
#include "scratch.h"

typedef struct {
  gk_api api;
  int amx, bias;
} rows_kernel;

static void *make(const gk_op *op, const void *table, int bias, void **kernel) {
  gk_api api = table;
  rows_kernel *k = malloc(sizeof *k);
  if (!k) return gk_fail(api, "no memory for a kernel");
  gk_op_set_quantized(op);
  *k = (rows_kernel){api, gk_op_processor(op) & GK_HAS_AMX, bias};
  *kernel = k;
  return NULL;
}

static void *create(const gk_op *op, const void *api, const void *info, void **kernel) { return (void)info, make(op, api, 0, kernel); }
static void *create_bias(const gk_op *op, const void *api, const void *info, void **kernel) { return (void)info, make(op, api, 1, kernel); }

static void *inputs(const rows_kernel *k, void *context, gk_rows *job, gk_tensor *x) {
  gk_tensor weights, scales, bias = {.data = NULL};
  void *bad = gk_input(k->api, context, 0, x);
  if (!bad) bad = gk_input(k->api, context, 1, &weights);
  if (!bad) bad = gk_input(k->api, context, 2, &scales);
  if (!bad && k->bias) bad = gk_input(k->api, context, 3, &bias);
  if (bad) return bad;
  if (weights.rank != 2 || x->rank < 1 || x->dims[x->rank - 1] != weights.dims[1] || weights.dims[0] < 1 || weights.dims[1] < 1 ||
      gk_elements(&scales) != weights.dims[0] || (k->bias && gk_elements(&bias) != weights.dims[0]))
    return gk_fail(k->api, "RowLinear: the shapes of x, weights [n, k], scales and bias [n] do not go together");
  memset(job, 0, sizeof *job);
  job->lay.rows = 1;
  for (size_t i = 0; i + 1 < x->rank; i++) job->lay.rows *= x->dims[i];
  job->lay.n = weights.dims[0], job->lay.k = weights.dims[1], job->lay.amx = k->amx && weights.dims[0] >= 16;
  job->lay.x = x->data, job->lay.scales = scales.data, job->lay.bias = bias.data;
  job->weights = weights.data;
  return NULL;
}

static void *compute(void *kernel, void *context) {
  rows_kernel *k = kernel;
  gk_rows job;
  gk_tensor x;
  void *bad = inputs(k, context, &job, &x);
  if (bad) return bad;
  int64_t dims[GK_MAX_RANK];
  memcpy(dims, x.dims, sizeof dims);
  dims[x.rank - 1] = job.lay.n;
  void *y;
  bad = gk_output(k->api, context, 0, dims, x.rank, &y);
  if (bad || job.lay.rows == 0) return bad;
  int failed = 0;
  job.lay.y = y, job.lay.failed = &failed;
  gk_rows_plan(&job);
  void *work = gk_scratch_take(gk_rows_work(&job));
  if (!work) return gk_fail(k->api, "RowLinear: no memory for %lld rows", (long long)job.lay.rows);
  gk_rows_layout(&job, work);
  bad = gk_parallel(k->api, context, gk_nbits_quantize, gk_nbits_quantize_parts(&job.lay), &job.lay);
  if (!bad) bad = gk_parallel(k->api, context, gk_rows_multiply, gk_rows_multiply_parts(&job), &job);
  if (!bad && failed) bad = gk_fail(k->api, "RowLinear: no memory");
  gk_scratch_give(work);
  return bad;
}

static const int types[] = {GK_FLOAT, GK_INT8, GK_FLOAT, GK_FLOAT};

const gk_kind gk_rows_kind = {
    .name = "RowLinear", .inputs = types, .input_count = 3, .output_count = 1, .create = create, .compute = compute, .destroy = free,
};
const gk_kind gk_rows_bias_kind = {
    .name = "RowLinearBias", .inputs = types, .input_count = 4, .output_count = 1, .create = create_bias, .compute = compute, .destroy = free,
};

#endif

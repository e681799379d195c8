// MatMulNBits as a custom operator: attributes and tensors checked, then nbits.c.
#include "op.h"

#if defined(__x86_64__)

#include <stdlib.h>
#include <string.h>

#include "nbits.h"
#include "scratch.h"

typedef struct {
  gk_api api;
  int amx;
  int64_t k, n, bits, block;
  gk_packing packing;
  int half; // of packed scales; set before packing.packed
} nbits_kernel;

static gk_nbits describe(const nbits_kernel *k) {
  int64_t blocks = (k->k + k->block - 1) / k->block;
  return (gk_nbits){.rows = 1, .n = k->n, .k = k->k, .blocks = blocks, .block = k->block, .bits = k->bits, .amx = k->amx,
                    .row_bytes = blocks * k->block * k->bits / 8};
}

// The weights where the graph has them.
static gk_nbits unpacked(const nbits_kernel *k) {
  gk_nbits job = describe(k);
  job.weights = k->packing.sources[0], job.scales = k->packing.sources[1];
  return job;
}

static size_t measure(void *kernel) {
  nbits_kernel *k = kernel;
  gk_nbits job = unpacked(k);
  job.half = k->half = gk_nbits_half_scales(&job);
  return gk_nbits_packed_bytes(&job);
}

static void pack(void *kernel, uint8_t *out) {
  nbits_kernel *k = kernel;
  gk_nbits job = unpacked(k);
  job.half = k->half;
  for (int64_t panel = 0; panel * 16 < job.n; panel++) gk_nbits_pack(&job, panel, out);
}

// Has the layer's weights packed when they are constants of the graph.
static void *offer_packing(nbits_kernel *k, gk_packer *packer, const void *info) {
  gk_nbits job = describe(k);
  gk_tensor weights, scales;
  void *bad = gk_constant(k->api, info, 1, &weights);
  if (!bad) bad = gk_constant(k->api, info, 2, &scales);
  if (bad || gk_elements(&weights) != job.n * job.row_bytes || gk_elements(&scales) != job.n * job.blocks) return bad;
  k->packing = (gk_packing){.layer = k, .measure = measure, .pack = pack, .sources = {weights.data, scales.data},
                            .source_bytes = {(size_t)(job.n * job.row_bytes), (size_t)(job.n * job.blocks) * sizeof(float)}};
  gk_packer_add(packer, &k->packing);
  return NULL;
}

static void destroy(void *kernel) {
  nbits_kernel *k = kernel;
  gk_packing_free(&k->packing);
  free(k);
}

static void *create(const gk_op *op, const void *table, const void *info, void **kernel) {
  gk_api api = table;
  nbits_kernel k = {.api = api, .amx = gk_op_processor(op) & GK_HAS_AMX};
  k.k = gk_attribute(api, info, "K", 0);
  k.n = gk_attribute(api, info, "N", 0);
  k.bits = gk_attribute(api, info, "bits", 4);
  k.block = gk_attribute(api, info, "block_size", 0);
  int64_t level = gk_attribute(api, info, "accuracy_level", 0);
  if (k.k < 1 || k.k > GK_LARGEST || k.n < 16 || k.n > GK_LARGEST || (k.bits != 4 && k.bits != 8) || level != 4 ||
      (k.block != 32 && k.block != 64 && k.block != 128 && k.block != 256))
    return gk_fail(api, GK_NOT_OURS "MatMulNBits of K %lld, N %lld, %lld bits, blocks of %lld, accuracy level %lld", (long long)k.k,
                   (long long)k.n, (long long)k.bits, (long long)k.block, (long long)level);
  gk_op_set_quantized(op);
  nbits_kernel *made = malloc(sizeof *made);
  if (!made) return gk_fail(api, "no memory for a kernel");
  *made = k;
  void *bad = gk_op_packer(op) ? offer_packing(made, gk_op_packer(op), info) : NULL;
  if (bad) {
    free(made);
    return bad;
  }
  *kernel = made;
  return NULL;
}

// The parts of the input that the operator's definition fixes.
static void *inputs(nbits_kernel *k, void *context, gk_nbits *job, gk_tensor *x) {
  gk_tensor weights, scales, zeros, groups, bias;
  void *bad = gk_input(k->api, context, 0, x);
  if (!bad) bad = gk_input(k->api, context, 1, &weights);
  if (!bad) bad = gk_input(k->api, context, 2, &scales);
  if (!bad) bad = gk_input(k->api, context, 3, &zeros);
  if (!bad) bad = gk_input(k->api, context, 4, &groups);
  if (!bad) bad = gk_input(k->api, context, 5, &bias);
  if (bad) return bad;
  *job = describe(k);
  if (zeros.data || groups.data) return gk_fail(k->api, "MatMulNBits: zero points and g_idx are not supported");
  if (!x->data && x->rank == 0) return gk_fail(k->api, "MatMulNBits: no A");
  if (gk_elements(&weights) != k->n * job->row_bytes || gk_elements(&scales) != k->n * job->blocks || (bias.data && gk_elements(&bias) != k->n))
    return gk_fail(k->api, "MatMulNBits: weights, scales or bias are not of N %lld, K %lld", (long long)k->n, (long long)k->k);
  if (x->rank < 1 || x->dims[x->rank - 1] != k->k)
    return gk_fail(k->api, "MatMulNBits: the last dimension of A is not K = %lld", (long long)k->k);
  for (size_t i = 0; i + 1 < x->rank; i++) job->rows *= x->dims[i];
  job->packed = atomic_load_explicit(&k->packing.packed, memory_order_acquire);
  job->half = job->packed && k->half;
  job->x = x->data, job->weights = weights.data, job->scales = scales.data, job->bias = bias.data;
  return NULL;
}

static void *compute(void *kernel, void *context) {
  nbits_kernel *k = kernel;
  gk_nbits job;
  gk_tensor x;
  void *bad = inputs(k, context, &job, &x);
  if (bad) return bad;
  int64_t dims[GK_MAX_RANK];
  memcpy(dims, x.dims, sizeof dims);
  dims[x.rank - 1] = k->n;
  void *y;
  bad = gk_output(k->api, context, 0, dims, x.rank, &y);
  if (bad || job.rows == 0) return bad;
  int failed = 0;
  job.y = y, job.failed = &failed;
  void *work = gk_scratch_take(gk_nbits_work(&job));
  if (!work) return gk_fail(k->api, "MatMulNBits: no memory for %lld rows", (long long)job.rows);
  gk_nbits_layout(&job, work);
  bad = gk_parallel(k->api, context, gk_nbits_quantize, gk_nbits_quantize_parts(&job), &job);
  if (!bad) bad = gk_parallel(k->api, context, gk_nbits_multiply, gk_nbits_multiply_parts(&job), &job);
  if (!bad && failed) bad = gk_fail(k->api, "MatMulNBits: no memory");
  gk_scratch_give(work);
  return bad;
}

static const int types[] = {GK_FLOAT, GK_UINT8, GK_FLOAT, GK_UINT8, GK_INT32, GK_FLOAT};

const gk_kind gk_nbits_kind = {
    .name = "MatMulNBits", .inputs = types, .input_count = 6, .optional = 1 << 3 | 1 << 4 | 1 << 5, .output_count = 1,
    .create = create, .compute = compute, .destroy = destroy,
};

#endif

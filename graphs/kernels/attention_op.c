// GroupQueryAttention as a custom operator: attributes and tensors checked, then attention.c.
#include "op.h"

#if defined(__x86_64__)

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"

// The operator's inputs, by place.
enum { QKV, KEY, VALUE, PAST_KEY, PAST_VALUE, SEQLENS_K, TOTAL, COS, SIN, POSITIONS, BIAS, SINK, K_SCALE, V_SCALE, EXTRA_14, EXTRA_15, FRESH, INPUTS };

static const int absent[] = {KEY, VALUE, POSITIONS, BIAS, SINK, K_SCALE, V_SCALE, EXTRA_14, EXTRA_15};
enum { ABSENT = sizeof absent / sizeof *absent };

typedef struct {
  gk_api api;
  int64_t heads, kv_heads, window;
  int rotary;
  float scale;
  const int *quantized;
} attention_kernel;

static void *create(const gk_op *op, const void *table, const void *info, void **kernel) {
  gk_api api = table;
  attention_kernel k;
  k.quantized = gk_op_quantized(op);
  k.api = api;
  k.heads = gk_attribute(api, info, "num_heads", 0);
  k.kv_heads = gk_attribute(api, info, "kv_num_heads", 0);
  k.window = gk_attribute(api, info, "local_window_size", -1);
  k.rotary = gk_attribute(api, info, "do_rotary", 0) != 0;
  k.scale = gk_attribute_float(api, info, "scale", 0);
  if (k.heads < 1 || k.heads > GK_LARGEST || k.kv_heads < 1 || k.kv_heads > GK_LARGEST || k.heads % k.kv_heads != 0 || gk_attribute(api, info, "rotary_interleaved", 0) != 0 ||
      gk_attribute(api, info, "causal", 1) != 1 || gk_attribute(api, info, "smooth_softmax", 0) > 0 ||
      gk_attribute(api, info, "qk_output", 0) != 0 || gk_attribute(api, info, "kv_cache_bit_width", 0) != 0 ||
      gk_attribute_float(api, info, "softcap", 0) != 0)
    return gk_fail(api, GK_NOT_OURS "GroupQueryAttention that is not causal, or has interleaved rotation, a soft cap or an attention sink");
  for (int i = 0; i < ABSENT; i++)
    if (gk_has_input(api, info, (size_t)absent[i])) return gk_fail(api, GK_NOT_OURS "GroupQueryAttention with input %d", absent[i]);
  attention_kernel *made = malloc(sizeof *made);
  if (!made) return gk_fail(api, "no memory for a kernel");
  *made = k;
  *kernel = made;
  return NULL;
}

static void *get_inputs(const attention_kernel *k, void *context, gk_tensor in[INPUTS]) {
  for (size_t i = 0; i < INPUTS; i++) {
    void *bad = gk_input(k->api, context, i, &in[i]);
    if (bad) return bad;
  }
  if (in[QKV].rank != 3 || in[PAST_KEY].rank != 4 || in[PAST_VALUE].rank != 4 || memcmp(in[PAST_KEY].dims, in[PAST_VALUE].dims, 4 * sizeof(int64_t)))
    return gk_fail(k->api, "GroupQueryAttention: want packed q, k, v of three dimensions and caches of four");
  return NULL;
}

// Lengths come from outside: none may lead beyond a buffer.
static void *check_lengths(const attention_kernel *k, const gk_attention *job, int64_t capacity, int64_t positions) {
  for (int64_t b = 0; b < job->batch; b++) {
    int64_t fresh = job->fresh ? job->fresh[b] : job->sequence, total = (int64_t)job->seqlens_k[b] + 1;
    if (fresh == 0) continue;
    if (fresh < 0 || fresh > job->sequence || total < fresh || total > capacity || (job->cos && total > positions))
      return gk_fail(k->api, "GroupQueryAttention: row %lld has %lld new tokens of %lld and %lld in all, the cache holds %lld and the rotary tables %lld",
                     (long long)b, (long long)fresh, (long long)job->sequence, (long long)total, (long long)capacity, (long long)positions);
  }
  return NULL;
}

static void *describe(const attention_kernel *k, const gk_tensor in[INPUTS], gk_attention *job) {
  const gk_tensor *cache = &in[PAST_KEY];
  *job = (gk_attention){.batch = in[QKV].dims[0], .sequence = in[QKV].dims[1], .heads = k->heads, .kv_heads = k->kv_heads, .dim = cache->dims[3]};
  if (job->dim < 1 || job->dim > GK_ATTENTION_MAX_DIM || cache->dims[0] != job->batch || cache->dims[1] != k->kv_heads ||
      in[QKV].dims[2] != (k->heads + 2 * k->kv_heads) * job->dim || gk_elements(&in[SEQLENS_K]) < job->batch ||
      (in[FRESH].data && gk_elements(&in[FRESH]) != job->batch))
    return gk_fail(k->api, "GroupQueryAttention: the shapes of q, k, v, the caches and the lengths do not go together");
  job->query_token = in[QKV].dims[2], job->query_batch = job->sequence * job->query_token;
  job->key_token = job->dim, job->key_head = cache->dims[2] * job->dim, job->key_batch = k->kv_heads * job->key_head;
  job->query = in[QKV].data, job->seqlens_k = in[SEQLENS_K].data, job->fresh = in[FRESH].data;
  job->scale = k->scale != 0 ? k->scale : 1 / sqrtf((float)job->dim);
  job->window = k->window > 0 && k->window < INT32_MAX ? k->window : 0;
  int64_t positions = 0;
  if (k->rotary) {
    if (in[COS].rank != 2 || in[SIN].rank != 2 || memcmp(in[COS].dims, in[SIN].dims, 2 * sizeof(int64_t)) || 2 * in[COS].dims[1] > job->dim)
      return gk_fail(k->api, "GroupQueryAttention: the rotary tables do not fit heads of %lld", (long long)job->dim);
    job->cos = in[COS].data, job->sin = in[SIN].data, job->half = in[COS].dims[1], positions = in[COS].dims[0];
  }
  return check_lengths(k, job, cache->dims[2], positions);
}

static void *compute(void *kernel, void *context) {
  attention_kernel *k = kernel;
  gk_tensor in[INPUTS];
  gk_attention job;
  void *bad = get_inputs(k, context, in);
  if (!bad) bad = describe(k, in, &job);
  if (bad) return bad;
  int64_t dims[3] = {job.batch, job.sequence, job.heads * job.dim};
  void *out, *key, *value;
  bad = gk_output(k->api, context, 0, dims, 3, &out);
  if (!bad) bad = gk_output(k->api, context, 1, in[PAST_KEY].dims, 4, &key);
  if (!bad) bad = gk_output(k->api, context, 2, in[PAST_KEY].dims, 4, &value);
  if (bad) return bad;
  // The caches are meant to be extended where they are; whoever binds others gets a copy.
  size_t bytes = (size_t)gk_elements(&in[PAST_KEY]) * sizeof(float);
  if (key != in[PAST_KEY].data) memcpy(key, in[PAST_KEY].data, bytes);
  if (value != in[PAST_VALUE].data) memcpy(value, in[PAST_VALUE].data, bytes);
  int failed = 0;
  job.near = *k->quantized, job.failed = &failed;
  job.out = out, job.key = key, job.value = value;
  if (job.batch == 0 || job.sequence == 0) return NULL;
  gk_attention_plan(&job);
  bad = gk_parallel(k->api, context, gk_attention_extend, gk_attention_extend_parts(&job), &job);
  if (!bad) bad = gk_parallel(k->api, context, gk_attention_attend, gk_attention_attend_parts(&job), &job);
  if (!bad && failed) bad = gk_fail(k->api, "GroupQueryAttention: no memory");
  return bad;
}

static const int types[INPUTS] = {
    [QKV] = GK_FLOAT, [KEY] = GK_FLOAT, [VALUE] = GK_FLOAT, [PAST_KEY] = GK_FLOAT, [PAST_VALUE] = GK_FLOAT, [SEQLENS_K] = GK_INT32,
    [TOTAL] = GK_INT32, [COS] = GK_FLOAT, [SIN] = GK_FLOAT, [POSITIONS] = GK_INT64, [BIAS] = GK_FLOAT, [SINK] = GK_FLOAT,
    [K_SCALE] = GK_FLOAT, [V_SCALE] = GK_FLOAT, [EXTRA_14] = GK_FLOAT, [EXTRA_15] = GK_FLOAT, [FRESH] = GK_INT32,
};

const gk_kind gk_attention_kind = {
    .name = "GroupQueryAttention", .inputs = types, .input_count = INPUTS, .optional = ~(uint64_t)(1 << QKV | 1 << SEQLENS_K | 1 << TOTAL),
    .output_count = 3, .create = create, .compute = compute, .destroy = free,
};

#endif

// MultiHeadAttention as a custom operator, for attention without a mask or to the first keys of each row: towers, Q-Formers, windows
// and cross-attention.
#include "op.h"

#if defined(__x86_64__)

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"

// The operator's inputs, by place.
enum { QUERY, KEY, VALUE, BIAS, LENGTHS, ATTENTION_BIAS, PAST_KEY, PAST_VALUE, PAST_LENGTH, INDIRECTION, INPUTS };

typedef struct {
  gk_api api;
  int64_t heads;
  float scale;
  const int *quantized;
} open_kernel;

static void *create(const gk_op *op, const void *table, const void *info, void **kernel) {
  gk_api api = table;
  open_kernel k = {api, gk_attribute(api, info, "num_heads", 0), gk_attribute_float(api, info, "scale", 0), gk_op_quantized(op)};
  static const size_t absent[] = {BIAS, ATTENTION_BIAS, PAST_KEY, PAST_VALUE, PAST_LENGTH, INDIRECTION};
  int ours = k.heads > 0 && gk_attribute(api, info, "unidirectional", 0) == 0 && gk_has_input(api, info, KEY) && gk_has_input(api, info, VALUE);
  for (size_t i = 0; i < sizeof absent / sizeof *absent; i++) ours = ours && !gk_has_input(api, info, absent[i]);
  if (!ours) return gk_fail(api, GK_NOT_OURS "MultiHeadAttention that is causal, packed, or has biases or a past");
  open_kernel *made = malloc(sizeof *made);
  if (!made) return gk_fail(api, "no memory for a kernel");
  *made = k;
  *kernel = made;
  return NULL;
}

// Keys and values are [batch, length, heads·dim], or [batch, heads, length, dim] where another attention has left them so.
static void *describe(const open_kernel *k, const gk_tensor in[INPUTS], gk_attention *job) {
  const gk_tensor *q = &in[QUERY], *key = &in[KEY], *value = &in[VALUE];
  if (q->rank != 3 || q->dims[2] % k->heads != 0 || (key->rank != 3 && key->rank != 4) || key->rank != value->rank ||
      memcmp(key->dims, value->dims, key->rank * sizeof(int64_t)))
    return gk_fail(k->api, "MultiHeadAttention: want queries [batch, length, heads * dim], and keys and values of one shape, of three or four dimensions");
  *job = (gk_attention){.batch = q->dims[0], .sequence = q->dims[1], .heads = k->heads, .kv_heads = k->heads, .dim = q->dims[2] / k->heads, .open = 1};
  job->query = q->data, job->query_token = q->dims[2], job->query_batch = q->dims[1] * q->dims[2];
  job->key = key->data, job->value = value->data;
  int fits;
  if (key->rank == 3) {
    job->key_length = key->dims[1], job->key_token = key->dims[2], job->key_head = job->dim;
    fits = key->dims[2] == q->dims[2];
  } else {
    job->key_length = key->dims[2], job->key_token = job->dim, job->key_head = key->dims[2] * key->dims[3];
    fits = key->dims[1] == k->heads && key->dims[3] == job->dim;
  }
  job->key_batch = job->key_length * q->dims[2];
  job->scale = k->scale != 0 ? k->scale : 1 / sqrtf((float)job->dim);
  if (!fits || key->dims[0] != job->batch || job->dim < 1 || job->dim > GK_ATTENTION_MAX_DIM)
    return gk_fail(k->api, "MultiHeadAttention: keys and values do not fit %lld queries' rows of %lld heads of %lld", (long long)job->batch,
                   (long long)k->heads, (long long)job->dim);
  if (in[LENGTHS].rank == 0) return NULL;
  if (in[LENGTHS].rank != 1 || in[LENGTHS].dims[0] != job->batch) return gk_fail(k->api, "MultiHeadAttention: of masks only a length for each row is supported");
  job->keys = in[LENGTHS].data;
  for (int64_t b = 0; b < job->batch; b++)
    if (job->keys[b] < 0 || job->keys[b] > job->key_length)
      return gk_fail(k->api, "MultiHeadAttention: row %lld has %d keys of %lld", (long long)b, (int)job->keys[b], (long long)job->key_length);
  return NULL;
}

static void *compute(void *kernel, void *context) {
  open_kernel *k = kernel;
  gk_tensor in[INPUTS];
  gk_attention job;
  void *bad = NULL, *out;
  for (size_t i = 0; i < INPUTS && !bad; i++) bad = gk_input(k->api, context, i, &in[i]);
  if (!bad) bad = describe(k, in, &job);
  if (!bad) bad = gk_output(k->api, context, 0, in[QUERY].dims, 3, &out);
  if (bad || job.batch == 0 || job.sequence == 0) return bad;
  int failed = 0;
  job.out = out, job.near = *k->quantized, job.failed = &failed;
  gk_attention_plan(&job);
  bad = gk_parallel(k->api, context, gk_attention_attend, gk_attention_attend_parts(&job), &job);
  if (!bad && failed) bad = gk_fail(k->api, "MultiHeadAttention: no memory");
  return bad;
}

static const int types[INPUTS] = {
    [QUERY] = GK_FLOAT, [KEY] = GK_FLOAT, [VALUE] = GK_FLOAT, [BIAS] = GK_FLOAT, [LENGTHS] = GK_INT32, [ATTENTION_BIAS] = GK_FLOAT,
    [PAST_KEY] = GK_FLOAT, [PAST_VALUE] = GK_FLOAT, [PAST_LENGTH] = GK_INT32, [INDIRECTION] = GK_INT32,
};

const gk_kind gk_open_attention_kind = {
    .name = "MultiHeadAttention", .inputs = types, .input_count = INPUTS, .optional = ~(uint64_t)(1 << QUERY), .output_count = 1,
    .create = create, .compute = compute, .destroy = free,
};

#endif

// Attention of a row's single new token: what it costs is reading the cache, so factors stay float32 and nothing is turned into tiles.
// Four heads that share keys are computed together, four keys at a time.
#include "attention.h"

#if defined(__x86_64__)

#include <math.h>

#include "attention_rows.h"
#include "scratch.h"
#include "x86.h"

enum { BLOCK = 128, TOGETHER = 4 };

// Sums of sixteen vectors.
GK_INLINE GK_TARGET_VNNI __m512 sum_each(const __m512 v[16]) {
  __m512 g[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const __m512 *c = v + 4 * i;
    __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(c[0], c[1]), _mm512_unpackhi_ps(c[0], c[1]));
    __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(c[2], c[3]), _mm512_unpackhi_ps(c[2], c[3]));
    __m512d ad = _mm512_castps_pd(a), bd = _mm512_castps_pd(b);
    g[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ad, bd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ad, bd)));
  }
  __m512 p = _mm512_add_ps(_mm512_shuffle_f32x4(g[0], g[1], 0x44), _mm512_shuffle_f32x4(g[0], g[1], 0xee));
  __m512 q = _mm512_add_ps(_mm512_shuffle_f32x4(g[2], g[3], 0x44), _mm512_shuffle_f32x4(g[2], g[3], 0xee));
  return _mm512_add_ps(_mm512_shuffle_f32x4(p, q, 0x88), _mm512_shuffle_f32x4(p, q, 0xdd));
}

// What a part works in.
typedef struct {
  float queries[TOGETHER][GK_ATTENTION_MAX_DIM];
  float scores[TOGETHER][BLOCK];
  float out[TOGETHER][GK_ATTENTION_MAX_DIM];
} one_work;

// scores[head][key] of count keys; what is behind them is anything. width is the dimension up to a multiple of 16: queries end in zeros.
GK_TARGET_VNNI static void score(one_work *w, const float *keys, int64_t apart, int64_t count, int64_t dim) {
  for (int64_t j = 0; j < count; j += 4) {
    const float *k[4];
    __m512 sums[16];
    for (int i = 0; i < 4; i++) k[i] = keys + (j + i < count ? j + i : count - 1) * apart;
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) sums[i] = _mm512_setzero_ps();
    for (int64_t d = 0; d < dim; d += 16) {
      __mmask16 lanes = gk_first_lanes(dim - d);
      __m512 q[TOGETHER];
#pragma GCC unroll 4
      for (int h = 0; h < TOGETHER; h++) q[h] = _mm512_load_ps(w->queries[h] + d);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        __m512 key = _mm512_maskz_loadu_ps(lanes, k[i] + d);
#pragma GCC unroll 4
        for (int h = 0; h < TOGETHER; h++) sums[4 * h + i] = _mm512_fmadd_ps(q[h], key, sums[4 * h + i]);
      }
    }
    __m512 all = sum_each(sums);
    _mm_store_ps(w->scores[0] + j, _mm512_castps512_ps128(all));
    _mm_store_ps(w->scores[1] + j, _mm512_extractf32x4_ps(all, 1));
    _mm_store_ps(w->scores[2] + j, _mm512_extractf32x4_ps(all, 2));
    _mm_store_ps(w->scores[3] + j, _mm512_extractf32x4_ps(all, 3));
  }
}

// Turns a head's scores into weights by the largest so far; sum and most are brought up to date. Returns the earlier weights' factor.
GK_TARGET_VNNI static float soften(float *scores, int64_t count, float *most, float *sum) {
  __m512 largest = _mm512_set1_ps(*most);
  for (int64_t j = 0; j < count; j += 16)
    largest = _mm512_mask_max_ps(largest, gk_first_lanes(count - j), largest, _mm512_load_ps(scores + j));
  float now = _mm512_reduce_max_ps(largest), factor = _mm512_cvtss_f32(gk_power(_mm512_set1_ps(*most - now)));
  __m512 total = _mm512_setzero_ps();
  for (int64_t j = 0; j < count; j += 16) {
    __m512 p = _mm512_maskz_mov_ps(gk_first_lanes(count - j), gk_power(_mm512_sub_ps(_mm512_load_ps(scores + j), _mm512_set1_ps(now))));
    _mm512_store_ps(scores + j, p);
    total = _mm512_add_ps(total, p);
  }
  *most = now;
  *sum = *sum * factor + _mm512_reduce_add_ps(total);
  return factor;
}

// out[head] = out[head] · factor + weighted values, 64 dimensions at a time.
GK_TARGET_VNNI static void gather(one_work *w, const float *values, int64_t apart, int64_t count, int64_t dim, const float factors[TOGETHER]) {
  for (int64_t d = 0; d < dim; d += 64) {
    __m512 sums[TOGETHER][4];
    __mmask16 lanes[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      lanes[i] = gk_first_lanes(dim - d - 16 * i);
#pragma GCC unroll 4
      for (int h = 0; h < TOGETHER; h++)
        sums[h][i] = _mm512_mul_ps(_mm512_set1_ps(factors[h]), _mm512_maskz_loadu_ps(lanes[i], w->out[h] + d + 16 * i));
    }
    for (int64_t j = 0; j < count; j++) {
      __m512 v[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) v[i] = _mm512_maskz_loadu_ps(lanes[i], values + j * apart + d + 16 * i);
#pragma GCC unroll 4
      for (int h = 0; h < TOGETHER; h++) {
        __m512 p = _mm512_set1_ps(w->scores[h][j]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) sums[h][i] = _mm512_fmadd_ps(p, v[i], sums[h][i]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
      for (int h = 0; h < TOGETHER; h++) _mm512_mask_storeu_ps(w->out[h] + d + 16 * i, lanes[i], sums[h][i]);
  }
}

GK_TARGET_VNNI void gk_attend_one(const gk_attention *job, int64_t b, int64_t h) {
  one_work *w = gk_scratch_take(sizeof *w);
  if (!w) {
    gk_failed(job->failed);
    return;
  }
  int64_t dim = job->dim, share = job->heads / job->kv_heads, place = job->seqlens_k[b], from = 0;
  if (job->window > 0 && place >= job->window) from = place - job->window + 1;
  const float *keys = gk_cache(job, job->key, b, h), *values = gk_cache(job, job->value, b, h);
  const float *heads = job->query + b * job->query_batch + h * share * dim;
  float *out = job->out + (b * job->sequence * job->heads + h * share) * dim;
  for (int64_t first = 0; first < share; first += TOGETHER) {
    float most[TOGETHER], sum[TOGETHER], factors[TOGETHER];
    memset(w->queries, 0, sizeof w->queries);
    memset(w->out, 0, sizeof w->out);
    for (int i = 0; i < TOGETHER; i++) { // where there are fewer, the last one is computed again
      int64_t head = first + i < share ? first + i : share - 1;
      gk_rotate(job, heads + head * dim, place, job->scale * GK_LOG2_E, w->queries[i]);
      most[i] = -1e30f, sum[i] = 0;
    }
    for (int64_t at = from; at <= place; at += BLOCK) {
      int64_t count = place + 1 - at < BLOCK ? place + 1 - at : BLOCK;
      score(w, keys + at * job->key_token, job->key_token, count, dim);
      for (int i = 0; i < TOGETHER; i++) factors[i] = soften(w->scores[i], count, &most[i], &sum[i]);
      gather(w, values + at * job->key_token, job->key_token, count, dim, factors);
    }
    for (int64_t i = 0; i < TOGETHER && first + i < share; i++)
      for (int64_t d = 0; d < dim; d++) out[(first + i) * dim + d] = w->out[i][d] / sum[i];
  }
  gk_scratch_give(w);
}

#endif

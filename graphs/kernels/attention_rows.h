// What attention.c and attention_one.c share.
#ifndef GLIMPSE_KERNELS_ATTENTION_ROWS_H
#define GLIMPSE_KERNELS_ATTENTION_ROWS_H

#if defined(__x86_64__)

#include "attention.h"
#include "x86.h"

#define GK_LOG2_E 1.44269504088896340736f // scores are times this, so that softmax is of powers of two

GK_INLINE __mmask16 gk_first_lanes(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1); }

static inline int64_t gk_fresh(const gk_attention *job, int64_t b) { return job->fresh ? job->fresh[b] : job->sequence; }

// Where the first key or value of a kv head is.
static inline float *gk_cache(const gk_attention *job, float *cache, int64_t b, int64_t h) { return cache + b * job->key_batch + h * job->key_head; }

// out = x times factor, its first 2·half elements rotated by the angles of position (the two halves are a pair's parts).
static inline void gk_rotate(const gk_attention *job, const float *x, int64_t position, float factor, float *out) {
  int64_t half = job->cos ? job->half : 0;
  const float *cos = job->cos + position * half, *sin = job->sin + position * half;
  for (int64_t i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    out[i] = (a * cos[i] - b * sin[i]) * factor;
    out[i + half] = (b * cos[i] + a * sin[i]) * factor;
  }
  for (int64_t i = 2 * half; i < job->dim; i++) out[i] = x[i] * factor;
}

// 2^x for x ≤ 0, within 2 units of the last place.
GK_INLINE GK_TARGET_VNNI __m512 gk_power(__m512 x) {
  __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, whole);
  __m512 y = _mm512_set1_ps(1.54035304e-4f); // (ln 2)^n / n!
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.33335581e-3f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(9.61812911e-3f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.55041087e-2f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(2.40226507e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(6.93147181e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1));
  return _mm512_scalef_ps(y, whole);
}

// Attention of row b's only new token for the heads that share kv head h (attention_one.c).
void gk_attend_one(const gk_attention *job, int64_t b, int64_t h);

#endif
#endif

// Causal attention of new tokens over a cache of keys and values: com.microsoft GroupQueryAttention.
#ifndef GLIMPSE_KERNELS_ATTENTION_H
#define GLIMPSE_KERNELS_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

// Row b has fresh[b] new tokens, at the places seqlens_k[b]+1−fresh[b] to seqlens_k[b] of its sequence; with none its cache is left
// alone. qkv is [batch, sequence, (heads + 2·kv_heads)·dim], key and value are [batch, kv_heads, capacity, dim] and extended in place.
typedef struct {
  int64_t batch, sequence, heads, kv_heads, dim, capacity;
  const float *qkv;
  float *key, *value;
  const int32_t *seqlens_k;
  const int32_t *fresh;  // null: sequence for every row
  const float *cos, *sin; // [positions, half], or null: q and k come rotated
  int64_t half;
  int64_t window; // a token sees so many places, its own the last; 0 for all before it
  float scale;    // of q·k
  float *out;     // [batch, sequence, heads·dim]; zero where a row has no token

  // What gk_attention_plan finds:
  int64_t tiles;  // the most tiles of 16 (token, head) pairs of one row's kv head
  int64_t groups; // parts that these are computed in
} gk_attention;

enum { GK_ATTENTION_MAX_DIM = 256 };

void gk_attention_plan(gk_attention *job);
// First the caches are extended, then everything is attended to; each phase in independent parts.
size_t gk_attention_extend_parts(const gk_attention *job);
void gk_attention_extend(void *job, size_t part);
size_t gk_attention_attend_parts(const gk_attention *job);
void gk_attention_attend(void *job, size_t part);

#endif

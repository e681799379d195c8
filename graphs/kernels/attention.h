// Attention: causal, of new tokens over a cache of keys and values (com.microsoft GroupQueryAttention), and open, of all tokens to
// all of a sequence (MultiHeadAttention).
#ifndef GLIMPSE_KERNELS_ATTENTION_H
#define GLIMPSE_KERNELS_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

// Causal: row b has fresh[b] new tokens, at the places seqlens_k[b]+1−fresh[b] to seqlens_k[b] of its sequence; with none its cache is
// left alone. Query holds [batch, sequence, (heads + 2·kv_heads)·dim], the new keys and values behind the queries; key and value are
// [batch, kv_heads, capacity, dim] and extended in place.
//
// Open: every token attends to the first keys[b] keys of its row.
typedef struct {
  int64_t batch, sequence, heads, kv_heads, dim;
  const float *query; // head h of token t of row b is at b·query_batch + t·query_token + h·dim
  int64_t query_batch, query_token;
  float *key, *value; // place j of kv head h of row b is at b·key_batch + h·key_head + j·key_token
  int64_t key_batch, key_head, key_token;
  float scale; // of q·k
  float *out;  // [batch, sequence, heads·dim]; zero where a row has no token
  int *failed; // set to 1 by a part that had no memory

  int near; // 16 bits of the factors are enough
  int open;
  const int32_t *keys; // open: how many of key_length are attended to; null: all
  int64_t key_length;

  const int32_t *seqlens_k; // causal
  const int32_t *fresh;     // null: sequence for every row
  const float *cos, *sin;   // [positions, half], or null: q and k come rotated
  int64_t half;
  int64_t window; // a token sees so many places, its own the last; 0 for all before it

  // What gk_attention_plan finds:
  int64_t tiles;  // the most tiles of 16 (token, head) pairs of one row's kv head
  int64_t groups; // parts that these are computed in
} gk_attention;

enum { GK_ATTENTION_MAX_DIM = 256 };

void gk_attention_plan(gk_attention *job);
// First the caches are extended, where attention is causal, then everything is attended to; each phase in independent parts.
size_t gk_attention_extend_parts(const gk_attention *job);
void gk_attention_extend(void *job, size_t part);
size_t gk_attention_attend_parts(const gk_attention *job);
void gk_attention_attend(void *job, size_t part);

#endif

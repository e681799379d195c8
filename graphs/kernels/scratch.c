// See scratch.h. Blocks that are not in use are few: as many as kernels ran at once.
#include "scratch.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

enum { KEPT = 16, HEAD = 64 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *kept[KEPT];
static int kept_count;

static size_t size_of(void *block) { return *(size_t *)((char *)block - HEAD); }

// Takes the smallest kept block that is large enough, else makes one in place of the smallest.
void *gk_scratch_take(size_t bytes) {
  void *found = NULL, *drop = NULL;
  pthread_mutex_lock(&lock);
  int best = -1, least = -1;
  for (int i = 0; i < kept_count; i++) {
    size_t size = size_of(kept[i]);
    if (size >= bytes && (best < 0 || size < size_of(kept[best]))) best = i;
    if (least < 0 || size < size_of(kept[least])) least = i;
  }
  int taken = best >= 0 ? best : least;
  if (taken >= 0) {
    if (best >= 0) found = kept[best];
    else drop = kept[least];
    kept[taken] = kept[--kept_count];
  }
  pthread_mutex_unlock(&lock);
  if (drop) free((char *)drop - HEAD);
  if (found) return found;
  bytes = (bytes + 4095) & ~(size_t)4095;
  char *block = aligned_alloc(64, bytes + HEAD);
  if (!block) return NULL;
  *(size_t *)block = bytes;
  return block + HEAD;
}

void gk_scratch_give(void *block) {
  if (!block) return;
  pthread_mutex_lock(&lock);
  if (kept_count < KEPT) {
    kept[kept_count++] = block;
    block = NULL;
  }
  pthread_mutex_unlock(&lock);
  if (block) free((char *)block - HEAD);
}

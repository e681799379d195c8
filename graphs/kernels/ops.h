// The operators that this package computes itself, for ONNX Runtime to find in place of its own.
#ifndef GLIMPSE_KERNELS_OPS_H
#define GLIMPSE_KERNELS_OPS_H

// What of the processor may be used; 0 where no kernel of ours fits it.
enum { GK_HAS_VNNI = 1, GK_HAS_AMX = 2 };
int gk_processor(void);

// A set of operators for session options; all pointers live until gk_ops_free, which must come after the sessions' end.
typedef struct gk_ops gk_ops;
// Returns null or a message to free. Registering twice is two sets.
char *gk_ops_register(const void *const *api, void *session_options, int processor, int pack, gk_ops **ops);
// With pack given above: lays the weights of a session's layers out for speed, beside its runs. gk_ops_stop makes it return early;
// it must have returned before the session ends.
void gk_ops_pack(gk_ops *ops);
void gk_ops_stop(gk_ops *ops);
void gk_ops_free(const void *const *api, gk_ops *ops);

#endif

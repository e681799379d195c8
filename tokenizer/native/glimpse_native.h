// C functions of the static library beside those of the tokenizers binding. The contracts are in src/ffi.rs.
#ifndef GLIMPSE_NATIVE_H
#define GLIMPSE_NATIVE_H

#include <stddef.h>
#include <stdint.h>

// Outcome of a call: on status 0 data is the result, on 1 and 2 the error's text (2: the template called raise_exception).
// UTF-8 of len bytes; free with glimpse_result_free.
typedef struct {
	uint8_t *data;
	size_t len;
	int32_t status;
} glimpse_result;

typedef struct glimpse_template glimpse_template;

// Returns NULL and an error in out when the template does not parse.
glimpse_template *glimpse_template_new(const uint8_t *source, size_t len, glimpse_result *out);
// context is a JSON object. Safe to call from several threads.
void glimpse_template_render(const glimpse_template *t, const uint8_t *context, size_t len, size_t max_output, glimpse_result *out);
void glimpse_template_free(glimpse_template *t);

// Loads a tokenizer.json without keeping it and describes its tokens as JSON.
void glimpse_tokenizer_inspect(const uint8_t *json, size_t len, glimpse_result *out);

void glimpse_result_free(glimpse_result *result);

#endif

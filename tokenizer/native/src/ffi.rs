//! The C side. Rules that every function keeps:
//! - text comes in and goes out as pointer and length, never zero-terminated: prompts may hold NUL bytes;
//! - nothing unwinds into the caller: a panic becomes an error like any other;
//! - what is handed out is freed by the function named for it, once.

use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};

use crate::constraint::{Constraint, Grammars};
use crate::inspect;
use crate::template::{ChatTemplate, Failure};

/// Outcome of a call. On OK `data` is the result, otherwise it is the error's text. Both are UTF-8 of `len` bytes
/// and belong to the caller until `glimpse_result_free`.
#[repr(C)]
pub struct GlimpseResult {
    data: *mut u8,
    len: usize,
    status: i32,
}

const OK: i32 = 0;
const FAILED: i32 = 1;
/// The template itself called raise_exception; `data` is its message.
const RAISED: i32 = 2;

impl GlimpseResult {
    fn new(status: i32, text: String) -> Self {
        let bytes = text.into_bytes().into_boxed_slice();
        let len = bytes.len();
        GlimpseResult { data: Box::into_raw(bytes).cast(), len, status }
    }

    fn failure(failure: Failure) -> Self {
        match failure {
            Failure::Raised(message) => Self::new(RAISED, message),
            Failure::Other(message) => Self::new(FAILED, message),
        }
    }
}

fn panic_text(payload: Box<dyn Any + Send>) -> String {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    format!("internal error: {text}")
}

/// Runs `work`, turning a panic into a failure.
fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| Err(Failure::Other(panic_text(payload))))
}

/// # Safety
/// `data` must be readable for `len` bytes, or `len` 0.
unsafe fn bytes<'a>(data: *const u8, len: usize) -> &'a [u8] {
    if len == 0 || data.is_null() {
        &[]
    } else {
        std::slice::from_raw_parts(data, len)
    }
}

fn utf8<'a>(data: &'a [u8], what: &str) -> Result<&'a str, Failure> {
    std::str::from_utf8(data).map_err(|e| Failure::Other(format!("{what} is not UTF-8: {e}")))
}

/// Compiles a template. Returns null and fills `out` when it does not parse; on success `out` is empty.
///
/// # Safety
/// `source` must be readable for `len` bytes; `out` must be writable.
#[no_mangle]
pub unsafe extern "C" fn glimpse_template_new(source: *const u8, len: usize, out: *mut GlimpseResult) -> *mut ChatTemplate {
    let source = bytes(source, len);
    handed_out(guarded(|| ChatTemplate::parse(utf8(source, "the template")?)), out)
}

/// Renders with the variables of a JSON object. May be called from several threads at once.
///
/// # Safety
/// `template` must come from `glimpse_template_new` and not be freed; `context` must be readable for `len` bytes.
#[no_mangle]
pub unsafe extern "C" fn glimpse_template_render(
    template: *const ChatTemplate,
    context: *const u8,
    len: usize,
    max_output: usize,
    out: *mut GlimpseResult,
) {
    let context = bytes(context, len);
    let rendered = guarded(|| {
        let template = template.as_ref().ok_or_else(|| Failure::Other("the template is closed".into()))?;
        template.render(utf8(context, "the context")?, max_output)
    });
    *out = match rendered {
        Ok(text) => GlimpseResult::new(OK, text),
        Err(failure) => GlimpseResult::failure(failure),
    };
}

/// # Safety
/// `template` must come from `glimpse_template_new`, once; null is allowed.
#[no_mangle]
pub unsafe extern "C" fn glimpse_template_free(template: *mut ChatTemplate) {
    free(template);
}

/// Loads a tokenizer.json the way the binding will and describes its tokens as JSON (see `inspect`). The binding lets a
/// panic end the process; here a file that would do that is an error.
///
/// # Safety
/// `json` must be readable for `len` bytes; `out` must be writable.
#[no_mangle]
pub unsafe extern "C" fn glimpse_tokenizer_inspect(json: *const u8, len: usize, out: *mut GlimpseResult) {
    let json = bytes(json, len);
    *out = match guarded(|| inspect::describe(json).map_err(Failure::Other)) {
        Ok(text) => GlimpseResult::new(OK, text),
        Err(failure) => GlimpseResult::failure(failure),
    };
}

/// Builds what the constraints of one model share out of its tokenizer.json, the number of its logits and the ids that end
/// an answer. Returns null and fills `out` when that fails; on success `out` is empty.
///
/// # Safety
/// `json` must be readable for `len` bytes, `eos` for `eos_len` values; `out` must be writable.
#[no_mangle]
pub unsafe extern "C" fn glimpse_grammars_new(
    json: *const u8,
    len: usize,
    width: usize,
    eos: *const u32,
    eos_len: usize,
    out: *mut GlimpseResult,
) -> *mut Grammars {
    let json = bytes(json, len);
    let eos = if eos_len == 0 || eos.is_null() { &[] } else { std::slice::from_raw_parts(eos, eos_len) };
    handed_out(guarded(|| Grammars::new(json, width, eos).map_err(Failure::Other)), out)
}

/// # Safety
/// `grammars` must come from `glimpse_grammars_new`, once; null is allowed. Constraints made of it live on.
#[no_mangle]
pub unsafe extern "C" fn glimpse_grammars_free(grammars: *mut Grammars) {
    free(grammars);
}

/// Compiles a JSON schema for one answer. May be called from several threads at once. Returns null and fills `out` when the
/// schema cannot be compiled; on success `out` is empty.
///
/// # Safety
/// `grammars` must come from `glimpse_grammars_new` and not be freed; `schema` must be readable for `len` bytes; `out` must
/// be writable.
#[no_mangle]
pub unsafe extern "C" fn glimpse_constraint_new(
    grammars: *const Grammars,
    schema: *const u8,
    len: usize,
    lenient: bool,
    out: *mut GlimpseResult,
) -> *mut Constraint {
    let schema = bytes(schema, len);
    let compiled = guarded(|| {
        let grammars = grammars.as_ref().ok_or_else(|| Failure::Other("the grammars are closed".into()))?;
        grammars.compile(utf8(schema, "the schema")?, lenient).map_err(Failure::Other)
    });
    handed_out(compiled, out)
}

/// Writes the mask of the next token: bit i of word j stands for token 32 j + i.
///
/// # Safety
/// `constraint` must come from `glimpse_constraint_new`, not be freed and not be in use; `mask` must be writable for `words`
/// values, `out` too.
#[no_mangle]
pub unsafe extern "C" fn glimpse_constraint_mask(constraint: *mut Constraint, mask: *mut u32, words: usize, out: *mut GlimpseResult) {
    let mask = if words == 0 || mask.is_null() { &mut [] } else { std::slice::from_raw_parts_mut(mask, words) };
    let made = guarded(|| {
        let constraint = constraint.as_mut().ok_or_else(|| Failure::Other("the constraint is closed".into()))?;
        constraint.mask(mask).map_err(Failure::Other)
    });
    *out = match made {
        Ok(()) => GlimpseResult::new(OK, String::new()),
        Err(failure) => GlimpseResult::failure(failure),
    };
}

/// Takes the next token. Returns true when the answer is complete.
///
/// # Safety
/// As for `glimpse_constraint_mask`.
#[no_mangle]
pub unsafe extern "C" fn glimpse_constraint_commit(constraint: *mut Constraint, token: u32, out: *mut GlimpseResult) -> bool {
    let committed = guarded(|| {
        let constraint = constraint.as_mut().ok_or_else(|| Failure::Other("the constraint is closed".into()))?;
        constraint.commit(token).map_err(Failure::Other)
    });
    let complete = matches!(committed, Ok(true));
    *out = match committed {
        Ok(_) => GlimpseResult::new(OK, String::new()),
        Err(failure) => GlimpseResult::failure(failure),
    };
    complete
}

/// # Safety
/// `constraint` must come from `glimpse_constraint_new`, once; null is allowed.
#[no_mangle]
pub unsafe extern "C" fn glimpse_constraint_free(constraint: *mut Constraint) {
    free(constraint);
}

/// Gives a made thing to the caller, or null and the failure in `out`.
unsafe fn handed_out<T>(made: Result<T, Failure>, out: *mut GlimpseResult) -> *mut T {
    match made {
        Ok(value) => {
            *out = GlimpseResult::new(OK, String::new());
            Box::into_raw(Box::new(value))
        }
        Err(failure) => {
            *out = GlimpseResult::failure(failure);
            std::ptr::null_mut()
        }
    }
}

/// Frees what `handed_out` gave.
unsafe fn free<T>(value: *mut T) {
    if !value.is_null() {
        let owned = Box::from_raw(value);
        // Freeing cannot report anything.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(owned)));
    }
}

/// # Safety
/// `result` must have been filled by a function above; freeing it twice is allowed.
#[no_mangle]
pub unsafe extern "C" fn glimpse_result_free(result: *mut GlimpseResult) {
    let Some(result) = result.as_mut() else { return };
    if !result.data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(result.data, result.len)));
    }
    result.data = std::ptr::null_mut();
    result.len = 0;
}

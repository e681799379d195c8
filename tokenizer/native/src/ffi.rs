//! The C side. Rules that every function keeps:
//! - text comes in and goes out as pointer and length, never zero-terminated: prompts may hold NUL bytes;
//! - nothing unwinds into the caller: a panic becomes an error like any other;
//! - what is handed out is freed by the function named for it, once.

use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};

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
    let parsed = guarded(|| ChatTemplate::parse(utf8(source, "the template")?));
    match parsed {
        Ok(template) => {
            *out = GlimpseResult::new(OK, String::new());
            Box::into_raw(Box::new(template))
        }
        Err(failure) => {
            *out = GlimpseResult::failure(failure);
            std::ptr::null_mut()
        }
    }
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
    if !template.is_null() {
        let owned = Box::from_raw(template);
        // Freeing cannot report anything.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(owned)));
    }
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

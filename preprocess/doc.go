// Package preprocess turns what people send (pictures for now; video and sound follow) into the tensors that a model's
// graphs take, and computes the position tables that its decoder takes.
//
// A picture goes through Decode (bounds first, then EXIF orientation, 8-bit RGB) and a Recipe (resize, crop or pad,
// normalise, NCHW float32). The reference for every number is what Pillow and the transformers processors do, because
// models were trained on their output: a filter that is "about the same" moves a caption. Where the two differ,
// the doc comments say which one is followed.
//
// Pictures come from strangers. Sizes are read and checked before any pixel memory is asked for, third-party decoders
// run behind a recover, and every failure is an *Error whose Kind says what was wrong with the picture.
// All results are deterministic: the same bytes give the same tensor on every machine and with any number of cores.
package preprocess

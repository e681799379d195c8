package graphs

// ONNX Runtime has one log a process, as it has one environment. Its messages
// go to the logger of the Runtime that opened the environment.

// #include <stdlib.h>
import "C"

import (
	"context"
	"log/slog"
	"sync/atomic"
)

// logSink is where native messages go. It is the one variable that the C
// callback can reach; environment.go sets and clears it.
var logSink atomic.Pointer[slog.Logger]

// ONNX Runtime's severities.
const (
	severityVerbose = iota
	severityInfo
	severityWarning
	severityError
	severityFatal
)

// nativeLevel is the level a native message is logged at. Whatever ONNX Runtime
// calls an error it also returns to the caller (a cancelled run among them), and
// its warnings are about graphs, for those who write them: both are for
// debugging.
func nativeLevel(severity int) slog.Level {
	switch severity {
	case severityVerbose:
		return slog.LevelDebug - 8
	case severityInfo:
		return slog.LevelDebug - 4
	case severityWarning, severityError:
		return slog.LevelDebug
	default:
		return slog.LevelError
	}
}

// nativeSeverity is the least severe message that the logger would show, so that
// ONNX Runtime does not format the others.
func nativeSeverity(logger *slog.Logger) int {
	for severity := severityVerbose; severity < severityFatal; severity++ {
		if logger.Enabled(context.Background(), nativeLevel(severity)) {
			return severity
		}
	}
	return severityFatal
}

//export glimpseGraphsLog
func glimpseGraphsLog(severity C.int, category, location, text *C.char) {
	logger := logSink.Load()
	if logger == nil {
		return
	}
	level := nativeLevel(int(severity))
	if !logger.Enabled(context.Background(), level) {
		return
	}
	logger.LogAttrs(context.Background(), level, C.GoString(text),
		slog.String("source", "onnxruntime"), slog.String("category", C.GoString(category)), slog.String("location", C.GoString(location)))
}

// What workers write to standard error goes to the log.

package worker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"slices"
)

// Logger is the log of a worker, for the front process to read.
func Logger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration { // JSON would have nanoseconds, and the reader could not tell
			a.Value = slog.StringValue(a.Value.Duration().String())
		}
		return a
	}}))
}

// maxLine bounds a line of the log; longer ones come in pieces.
const maxLine = 16 << 10

// relay logs lines until r ends. Lines that slog's JSON handler wrote keep their level, message and attributes; others
// are what libraries print, and mostly bad news.
func relay(r io.Reader, log *slog.Logger) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		if len(line) > 0 {
			logLine(line, log)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func logLine(line []byte, log *slog.Logger) {
	var fields map[string]any
	var level slog.Level
	message, structured := "", false
	if json.Unmarshal(line, &fields) == nil {
		name, _ := fields[slog.LevelKey].(string)
		message, structured = fields[slog.MessageKey].(string)
		structured = structured && level.UnmarshalText([]byte(name)) == nil
	}
	if !structured {
		if text := string(trimEnd(line)); text != "" {
			log.Warn("the worker says", "line", text)
		}
		return
	}
	var attrs []slog.Attr
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if key != slog.TimeKey && key != slog.LevelKey && key != slog.MessageKey && key != "model" {
			attrs = append(attrs, slog.Any(key, fields[key]))
		}
	}
	log.LogAttrs(context.Background(), level, message, attrs...)
}

func trimEnd(line []byte) []byte {
	for len(line) > 0 && (line[len(line)-1] == '\n' || line[len(line)-1] == '\r') {
		line = line[:len(line)-1]
	}
	return line
}

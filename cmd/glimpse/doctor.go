// glimpse doctor: what of the set-up is there, and what is missing.

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"glimpse/graphs"
	av "glimpse/media"
	"glimpse/tokenizer"

	"github.com/spf13/cobra"
)

// diagnosis is the JSON of doctor.
type diagnosis struct {
	OK          bool          `json:"ok"` // everything that is needed is there
	ONNXRuntime doctorRuntime `json:"onnxruntime"`
	Tokenizers  doctorPart    `json:"tokenizers"`
	FFmpeg      doctorPart    `json:"ffmpeg"` // not needed by models that take pictures only
	CPU         doctorCPU     `json:"cpu"`
	Memory      doctorMemory  `json:"memory"`
}

type doctorRuntime struct {
	OK        bool     `json:"ok"`
	Library   string   `json:"library,omitempty"`
	Version   string   `json:"version,omitempty"`
	Needed    string   `json:"needed"` // the oldest version that works
	CAPI      int      `json:"c_api"`
	Binding   string   `json:"binding"`
	Providers []string `json:"providers"`
	CUDA      string   `json:"cuda,omitempty"` // why --device cuda cannot be used; "" when it can
	GPUs      []int64  `json:"gpus,omitempty"` // bytes available on each GPU
	Tried     []string `json:"tried,omitempty"`
	Error     string   `json:"error,omitempty"`
}

type doctorPart struct {
	OK      bool   `json:"ok"`
	Version string `json:"version,omitempty"`
	Error   string `json:"error,omitempty"`
}

type doctorCPU struct {
	Features   []string `json:"features"`
	Processors int      `json:"processors"`
	Cores      int      `json:"cores"`   // physical, that this process may use
	Threads    int      `json:"threads"` // what --threads 0 means
	Kernels    string   `json:"kernels"` // what of the processor glimpse's own kernels use
}

type doctorMemory struct {
	TotalBytes     int64 `json:"total_bytes"`           // 0: unknown
	AvailableBytes int64 `json:"available_bytes"`       // 0: unknown
	LimitBytes     int64 `json:"limit_bytes,omitempty"` // of the control group, where it is lower
}

func newDoctor(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "doctor", Short: "Shows what of the set-up is there", Args: cobra.NoArgs,
		Long: "Shows what glimpse finds: ONNX Runtime, the tokenizers library, ffmpeg, the processor and the memory.\nExit status 1 when something that is needed is missing.",
		RunE: func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd.Context(), a, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func runDoctor(ctx context.Context, a *app, asJSON bool) error {
	d := diagnose(ctx, a)
	err := error(nil)
	if asJSON {
		err = writeJSON(a.stdout, d)
	} else {
		err = printDiagnosis(a, d)
	}
	if err == nil && !d.OK {
		return errFound
	}
	return err
}

func diagnose(ctx context.Context, a *app) *diagnosis {
	g := graphs.Diagnose(a.global.OrtLib)
	d := &diagnosis{
		ONNXRuntime: doctorRuntime{
			OK: g.Err == nil, Library: g.Library.Path, Version: g.Library.Version, Needed: g.MinimumVersion, CAPI: g.RequiredAPI,
			Binding: g.BindingVersion, Providers: append([]string{}, g.Providers...), Tried: g.Library.Tried,
		},
		Tokenizers: diagnoseTokenizers(),
		FFmpeg:     diagnoseFFmpeg(ctx, a),
		CPU:        doctorCPU{Features: []string{}, Processors: g.Processors, Cores: g.Cores, Threads: g.Threads, Kernels: g.Kernels},
		Memory:     readMemory(),
	}
	if g.Err != nil {
		d.ONNXRuntime.Error = oneLine(g.Err)
	}
	if g.CUDA != nil {
		d.ONNXRuntime.CUDA = oneLine(g.CUDA)
	}
	for _, gpu := range g.GPUs {
		d.ONNXRuntime.GPUs = append(d.ONNXRuntime.GPUs, gpu.Available)
	}
	for _, f := range g.Features {
		if f.Present {
			d.CPU.Features = append(d.CPU.Features, f.Name)
		}
	}
	d.OK = d.ONNXRuntime.OK && d.Tokenizers.OK
	return d
}

// diagnoseTokenizers calls into the static library: that it is linked is one thing, that it answers another.
func diagnoseTokenizers() doctorPart {
	t, err := tokenizer.ParseTemplate("{{ 'ok' }}")
	if err != nil {
		return doctorPart{Error: oneLine(err)}
	}
	defer t.Close()
	version := "linked"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if strings.HasSuffix(m.Path, "/tokenizers") {
				version = m.Path + " " + m.Version
			}
		}
	}
	return doctorPart{OK: true, Version: version}
}

func diagnoseFFmpeg(ctx context.Context, a *app) doctorPart {
	tools, err := av.New(av.Options{FFmpeg: a.global.FFmpeg, Limits: av.Limits{Timeout: 5 * time.Second}}).Tools(ctx)
	if err != nil {
		return doctorPart{Error: oneLine(err) + "; only models that take video or sound need it"}
	}
	return doctorPart{OK: true, Version: tools.Version + " at " + tools.FFmpeg + ", " + tools.FFprobe}
}

// readMemory reads what the kernel says; where it does not, the numbers are 0.
func readMemory() doctorMemory {
	var m doctorMemory
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return m
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text()) // "MemTotal:  24574936 kB"
		if len(fields) < 2 {
			continue
		}
		n, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			continue
		}
		switch fields[0] {
		case "MemTotal:":
			m.TotalBytes = n << 10
		case "MemAvailable:":
			m.AvailableBytes = n << 10
		}
	}
	if raw, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil { // "max" where there is no limit
		if n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64); err == nil && n < m.TotalBytes {
			m.LimitBytes = n
		}
	}
	return m
}

func printDiagnosis(a *app, d *diagnosis) error {
	t := newTable(a.stdout)
	o := d.ONNXRuntime
	if o.OK {
		t.row("ONNX Runtime", "ok", o.Version+" at "+o.Library)
		t.row("", "", "providers "+strings.Join(o.Providers, ", "))
	} else {
		t.row("ONNX Runtime", "MISSING", fmt.Sprintf("%s or newer is needed (C API %d, binding %s); get it with `make deps`, or name it with --ort-lib or GLIMPSE_ORT_LIB", o.Needed, o.CAPI, o.Binding))
		for _, place := range o.Tried {
			t.row("", "", "tried "+oneLineText(place))
		}
		if len(o.Tried) == 0 {
			t.row("", "", o.Error)
		}
	}
	if o.CUDA == "" {
		t.row("CUDA", "ok", describeGPUs(o.GPUs))
	} else {
		t.row("CUDA", "no", o.CUDA)
	}
	t.row("tokenizers", okOr(d.Tokenizers.OK, "MISSING"), firstOf(d.Tokenizers.Version, d.Tokenizers.Error))
	t.row("ffmpeg", okOr(d.FFmpeg.OK, "no"), firstOf(d.FFmpeg.Version, d.FFmpeg.Error))
	t.row("CPU", "", fmt.Sprintf("%d processors, %d cores, %d threads by default; %s", d.CPU.Processors, d.CPU.Cores, d.CPU.Threads, strings.Join(d.CPU.Features, " ")))
	t.row("kernels", "", d.CPU.Kernels)
	memory := fmt.Sprintf("%s, %s available", byteSize(d.Memory.TotalBytes), byteSize(d.Memory.AvailableBytes))
	if d.Memory.LimitBytes > 0 {
		memory += ", limited to " + byteSize(d.Memory.LimitBytes)
	}
	t.row("memory", "", memory)
	return t.flush()
}

func describeGPUs(available []int64) string {
	list := make([]string, len(available))
	for i, bytes := range available {
		list[i] = fmt.Sprintf("GPU %d with %s available", i, byteSize(bytes))
	}
	return strings.Join(list, ", ")
}

func okOr(ok bool, other string) string {
	if ok {
		return "ok"
	}
	return other
}

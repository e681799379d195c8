// glimpse ask: one question, one answer.

package main

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"glimpse/batch"
	"glimpse/engine"
	"glimpse/manifest"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// AskOptions are the flags of ask.
type AskOptions struct {
	ModelOptions
	ClipOptions
	Images   []string
	Videos   []string
	Audios   []string
	Messages string
	Raw      bool
	NoEXIF   bool
	JSON     bool
	Tiling   string
	MaxTiles int
	Draw     string

	MinResize, MaxResize int // pixels

	MaxTokens         int
	Temperature       float64
	TopP              float64
	TopK              int
	MinP              float64
	RepetitionPenalty float64
	Seed              uint64
	Stop              []string
	seeded            bool // --seed was given
}

// AddFlags adds the flags.
func (o *AskOptions) AddFlags(f *pflag.FlagSet) {
	o.ModelOptions.AddFlags(f, 1)
	o.CacheOptions.AddFlags(f, false)
	o.ClipOptions.AddFlags(f)
	f.StringArrayVar(&o.Images, "image", nil, "picture `file`; may be given several times")
	f.StringArrayVar(&o.Videos, "video", nil, "video `file`, or a folder of frames in the order of their names, for models that take videos; may be given several times")
	f.StringArrayVar(&o.Audios, "audio", nil, "sound `file`, or a video file for its sound, for models that take sound; may be given several times")
	f.StringVar(&o.Messages, "messages", "", "JSON `file` with an OpenAI messages array, instead of PROMPT and --image")
	f.BoolVar(&o.Raw, "raw", false, "send PROMPT without the chat template")
	f.BoolVar(&o.NoEXIF, "no-exif", false, "do not turn pictures upright")
	o.Tiling = "auto"
	f.Var(&choice{&o.Tiling, []string{"auto", "off", "hd", "stretch"}}, "tiling", "how pictures are cut into tiles: auto (as the model was released), off (one tile a picture), hd (tiles for models released without: LLaVA-1.5), stretch (the whole picture where the release crops or pads)")
	f.Var(&count{&o.MaxTiles, 0}, "max-tiles", "tiles of a picture at most, the whole picture that some models add not counted; 0: the model's bound")
	f.Var(&count{&o.MinResize, 0}, "resize-min-pixels", "least area that a picture is resized to, for models that take pictures at their own size; 0: the model's")
	f.Var(&count{&o.MaxResize, 0}, "resize-max-pixels", "largest area that a picture is resized to, for models that take pictures at their own size; 0: the model's")
	f.StringVar(&o.Draw, "draw", "", "write the picture with the answer's boxes drawn on it to this PNG `file`")
	f.BoolVar(&o.JSON, "json", false, "print one JSON object instead of the text")
	f.Var(&count{&o.MaxTokens, 0}, "max-tokens", "tokens to generate at most; 0: the model's default")
	f.Float64Var(&o.Temperature, "temperature", 0, "0: greedy")
	f.Float64Var(&o.TopP, "top-p", 1, "smallest set of tokens with this probability; 1: off")
	f.Var(&count{&o.TopK, 0}, "top-k", "the most probable tokens only; 0: off")
	f.Float64Var(&o.MinP, "min-p", 0, "no token below this share of the best one's probability; 0: off")
	f.Float64Var(&o.RepetitionPenalty, "repetition-penalty", 1, "of tokens that were there already; 1: off")
	f.Uint64Var(&o.Seed, "seed", 0, "of sampling; without it every run draws differently")
	f.StringArrayVar(&o.Stop, "stop", nil, "end the answer before this `text`; may be given several times")
}

func newAsk(a *app) *cobra.Command {
	var o AskOptions
	cmd := &cobra.Command{
		Use:   "ask MODEL [PROMPT]",
		Short: "Answers a question about pictures",
		Long: "Answers PROMPT, with the pictures first. Without PROMPT the model's caption prompt is used.\n" +
			"The answer is printed as it comes; --json prints one object at the end.",
		Example: "  glimpse ask llava/ --image cat.jpg 'What is the cat doing?'\n  glimpse ask llava/ --messages chat.json --json",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.seeded = cmd.Flags().Changed("seed")
			return runAsk(cmd.Context(), a, o, args)
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}

func runAsk(ctx context.Context, a *app, o AskOptions, args []string) error {
	prompt := ""
	if len(args) == 2 {
		prompt = args[1]
	}
	if err := o.check(len(args) == 2); err != nil {
		return err
	}
	args, err := a.named(args)
	if err != nil {
		return err
	}
	m, err := manifest.Read(args[0])
	if err != nil {
		return badInput(err)
	}
	req, err := o.request(ctx, m, a.newClips(m, o.ClipOptions, o.NoEXIF), prompt, len(args) == 2)
	if err != nil {
		return err
	}
	return a.withEngine(ctx, args[0], o.ModelOptions, func(e *engine.Engine) error {
		result, err := answer(ctx, a, e, req, o.JSON)
		if err != nil || o.Draw == "" {
			return err
		}
		return drawAnswer(ctx, o.Draw, req, result.Boxes)
	})
}

// answer prints the answer: as JSON at its end, or as text while it comes.
func answer(ctx context.Context, a *app, e *engine.Engine, req engine.Request, asJSON bool) (*engine.Result, error) {
	if !asJSON {
		return askStreaming(ctx, a, e, req)
	}
	result, err := e.Generate(ctx, req)
	if err != nil {
		return nil, err
	}
	return result, writeJSON(a.stdout, askReply(result, e.LoadTime()))
}

// check refuses what cannot be meant, before anything is read.
func (o *AskOptions) check(prompted bool) error {
	switch {
	case o.Messages != "" && (prompted || o.Raw || len(o.Images)+len(o.Videos)+len(o.Audios) > 0):
		return badInputf("--messages holds the whole conversation: give it alone, without PROMPT, --raw, --image, --video or --audio")
	case o.Draw != "" && !strings.EqualFold(filepath.Ext(o.Draw), ".png"):
		return badInputf("--draw %s: the picture is written as PNG; give the file that ending", o.Draw)
	case o.Raw && !prompted:
		return badInputf("--raw needs a PROMPT")
	case !within(o.Temperature, 0, 100):
		return badInputf("--temperature %v: it must lie in 0..100", o.Temperature)
	case !within(o.TopP, 0, 1) || o.TopP == 0:
		return badInputf("--top-p %v: it must lie above 0 and be at most 1", o.TopP)
	case !within(o.MinP, 0, 1):
		return badInputf("--min-p %v: it must lie in 0..1", o.MinP)
	case !within(o.RepetitionPenalty, 0, 100) || o.RepetitionPenalty == 0:
		return badInputf("--repetition-penalty %v: it must be positive", o.RepetitionPenalty)
	}
	for _, s := range o.Stop {
		if s == "" {
			return badInputf("--stop is empty")
		}
	}
	return o.ClipOptions.check()
}

// within is false for NaN.
func within(v, low, high float64) bool { return !math.IsNaN(v) && v >= low && v <= high }

// request reads pictures, videos and sounds and puts the request together.
func (o *AskOptions) request(ctx context.Context, m *manifest.Manifest, clips *clips, prompt string, prompted bool) (engine.Request, error) {
	req := engine.Request{
		MaxTokens:      o.MaxTokens,
		Stop:           o.Stop,
		PictureOptions: engine.PictureOptions{Tiling: tilings[o.Tiling], MaxTiles: o.MaxTiles, MinPixels: o.MinResize, MaxPixels: o.MaxResize},
		Sampling: engine.Sampling{
			Temperature: o.Temperature, TopP: o.TopP, MinP: o.MinP, TopK: o.TopK, RepetitionPenalty: o.RepetitionPenalty,
		},
	}
	if o.seeded {
		req.Seed = &o.Seed
	}
	if len(o.Videos) > 0 && (m.Picture == nil || m.Picture.Video == nil) {
		return req, badInputf("--video %s: this model (%s) takes no videos", o.Videos[0], m.Family)
	}
	if len(o.Audios) > 0 && m.Audio == nil {
		return req, badInputf("--audio %s: this model (%s) takes no sound", o.Audios[0], m.Family)
	}
	if o.Messages != "" {
		messages, err := readMessages(ctx, o.Messages, o.NoEXIF, clips)
		if ctx.Err() != nil {
			return req, context.Cause(ctx)
		}
		if err != nil {
			return req, badInputf("%s: %w", o.Messages, err)
		}
		req.Messages = messages
		return req, nil
	}
	if !prompted && len(o.Images)+len(o.Videos)+len(o.Audios) == 0 {
		return req, badInputf("nothing to ask: give a PROMPT, --image, --video, --audio or --messages")
	}
	pictures, err := readPictures(o.Images, o.NoEXIF)
	if err != nil {
		return req, err
	}
	if given := slices.Concat(o.Videos, o.Audios); (o.Raw || m.Prompt.Template == "") && len(given) > 0 {
		return req, badInputf("--video or --audio %s: videos and sounds go through a chat template, and there is none here (or --raw leaves it out)", given[0])
	}
	moving, err := clips.read(ctx, o.Videos, o.Audios)
	if err != nil {
		return req, err
	}
	if o.Raw {
		req.Raw, req.Prompt, req.Pictures = true, prompt, pictures
		return req, nil
	}
	asked := batch.Request(m, pictures, prompt)
	req.Messages, req.Raw, req.Prompt, req.Pictures = asked.Messages, asked.Raw, asked.Prompt, asked.Pictures
	if len(moving) > 0 { // behind the pictures, before the text
		content := &req.Messages[0].Content
		*content = slices.Insert(*content, len(pictures), moving...)
	}
	return req, nil
}

// tilings are the words of --tiling.
var tilings = map[string]string{"auto": engine.TilingAuto, "off": engine.TilingOff, "hd": engine.TilingHD, "stretch": engine.TilingStretch}

// askStreaming prints the answer's text as it becomes final. Printing happens beside the engine, which must not wait
// for a slow terminal; when printing fails the answer is given up.
func askStreaming(ctx context.Context, a *app, e *engine.Engine, req engine.Request) (*engine.Result, error) {
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	p := newPrinter(a.stdout, giveUp)
	var last string
	req.Token = func(t engine.Token) {
		if t.Text != "" {
			last = t.Text
			p.print(t.Text)
		}
	}
	result, err := e.Generate(ctx, req)
	if err == nil || last != "" {
		if !strings.HasSuffix(last, "\n") {
			p.print("\n")
		}
	}
	if perr := p.close(); perr != nil {
		return nil, fmt.Errorf("print answer: %w", perr)
	}
	return result, err
}

// reply is the JSON of an answer; its keys are public.
type reply struct {
	Text           string       `json:"text"`
	TokenIDs       []int32      `json:"token_ids"`
	PromptTokenIDs []int32      `json:"prompt_token_ids"`
	FinishReason   string       `json:"finish_reason"`
	Boxes          []engine.Box `json:"boxes"` // empty for models that draw none
	Usage          replyUsage   `json:"usage"`
	Timings        replyTimings `json:"timings"`
}

// box is a labelled rectangle in pixels of the original picture.
type box struct {
	Label string  `json:"label"`
	X1    float64 `json:"x1"`
	Y1    float64 `json:"y1"`
	X2    float64 `json:"x2"`
	Y2    float64 `json:"y2"`
}

type replyUsage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	ImageTokens      int `json:"image_tokens"`
	AudioTokens      int `json:"audio_tokens,omitempty"`
	CachedTokens     int `json:"cached_tokens"`
}

type replyTimings struct {
	LoadMS          float64 `json:"load_ms"`
	PreprocessMS    float64 `json:"preprocess_ms"`
	VisionMS        float64 `json:"vision_ms"`
	ConnectorMS     float64 `json:"connector_ms"`
	PrefillMS       float64 `json:"prefill_ms"`
	DecodeMS        float64 `json:"decode_ms"`
	TokensPerSecond float64 `json:"tokens_per_second"`
	Drafted         int     `json:"drafted_tokens"`
	Accepted        int     `json:"accepted_tokens"`
}

func askReply(r *engine.Result, load time.Duration) reply {
	t := r.Timings
	return reply{
		Text: r.Text, TokenIDs: notNil(r.TokenIDs), PromptTokenIDs: notNil(r.PromptTokenIDs), FinishReason: r.FinishReason,
		Boxes: append([]engine.Box{}, r.Boxes...),
		Usage: replyUsage{r.Usage.PromptTokens, r.Usage.CompletionTokens, r.Usage.ImageTokens, r.Usage.AudioTokens, r.Usage.CachedTokens},
		Timings: replyTimings{
			LoadMS: ms(load), PreprocessMS: ms(t.Preprocess), VisionMS: ms(t.Vision), ConnectorMS: ms(t.Connector),
			PrefillMS: ms(t.Prefill), DecodeMS: ms(t.Decode), TokensPerSecond: rounded(t.TokensPerSecond, 2),
			Drafted: t.Drafted, Accepted: t.Accepted,
		},
	}
}

func notNil(ids []int32) []int32 {
	if ids == nil {
		return []int32{}
	}
	return ids
}

// ms is a duration in milliseconds with three decimals.
func ms(d time.Duration) float64 { return rounded(float64(d)/float64(time.Millisecond), 3) }

func rounded(v float64, decimals int) float64 {
	p := math.Pow10(decimals)
	return math.Round(v*p) / p
}

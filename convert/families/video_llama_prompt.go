// Video-LLaMA's conversations: its authors keep them in their code (conversation_video.py), "SINGLE" with "###" for Vicuna and
// "LLAMA_2" for LLaMA-2 chat. Nothing in a release says which; a .toml of pieces does.

package families

import (
	"glimpse/convert/blocks"
	"glimpse/manifest"
)

// Marks of media in the rendered prompt. The authors write <ImageHere> for each; names of their own tell apart what
// stands where.
const (
	imageHere = "<ImageHere>"
	videoHere = "<VideoHere>"
	audioHere = "<AudioHere>"
)

// seesPictures is the system text where a conversation has still pictures alone.
const seesPictures = "You are able to understand the visual content that the user provides. Follow the instructions carefully and explain your answers in detail."

// Media of one message, as upload_img, upload_video_without_audio and upload_video put them in front of the question. The
// authors' code has no form for a sound alone; ours is their sentence for sound and video without the video.
const (
	onePicture = `<Image>` + imageHere + `</Image> `
	oneVideo   = `<Video>` + videoHere + `</Video> `
	oneSound   = "Close your eyes, open your ears and you imagine only based on the sound that: " + audioHere + ". "
	together   = oneSound + "                Close your ears, open your eyes and you see that <Video>" + videoHere +
		"</Video>.                  Now answer my question based on what you have just seen and heard."
	heardOnly = "Now answer my question based on what you have just heard."
)

// helpful is LLaMA-2 chat's system text where nothing is seen or heard.
const helpful = "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, and assist the user with a variety of tasks using natural language."

// countMedia counts still pictures, and videos and sounds, of all messages.
const countMedia = `{% set ns = namespace(pictures=0, others=0, users=0) %}` +
	`{% for message in messages %}{% if message['content'] is not string %}{% for part in message['content'] %}` +
	`{% if part['type'] == 'image' %}{% set ns.pictures = ns.pictures + 1 %}` +
	`{% elif part['type'] != 'text' %}{% set ns.others = ns.others + 1 %}{% endif %}` +
	`{% endfor %}{% endif %}{% endfor %}`

// llamaV2Template is the conversation for LLaMA-2 chat. A prompt's first <s> is the tokenizer's.
const llamaV2Template = countMedia +
	`{% for message in messages %}` +
	`{% if message['role'] == 'user' %}{% set ns.users = ns.users + 1 %}` +
	`{% if ns.users == 1 %}{{ '[INST] <<SYS>>\n' }}` +
	`{% if messages[0]['role'] == 'system' %}` + firstText +
	`{% elif ns.others %}{% elif ns.pictures %}` + seesPictures + `{% else %}` + helpful + `{% endif %}{{ '\n<</SYS>>\n\n' }}` +
	`{% else %}<s>[INST] {% endif %}` + videoLLaMAContent + `{{ ' [/INST]' }}` +
	`{% elif message['role'] == 'assistant' %}{{ ' ' }}` + plainText + `{{ ' </s>' }}` +
	`{% elif not (loop.first and message['role'] == 'system') %}` + wrongRole + `{% endif %}{% endfor %}`

const wrongRole = `{{ raise_exception('Roles are user and assistant, and system for the first message') }}`

// videoLLaMATemplate renders the messages. Times of frames are there where the video's own are known.
const videoLLaMATemplate = countMedia +
	`{% if messages[0]['role'] == 'system' %}` + firstText +
	`{% elif ns.pictures and not ns.others %}` + seesPictures + `{% endif %}###` +
	`{% for message in messages %}` +
	`{% if message['role'] == 'user' %}Human: ` + videoLLaMAContent + `###` +
	`{% elif message['role'] == 'assistant' %}Assistant: ` + plainText + `###` +
	`{% elif not (loop.first and message['role'] == 'system') %}` + wrongRole + `{% endif %}` +
	`{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}`

const (
	firstText = `{% if messages[0]['content'] is string %}{{ messages[0]['content'] }}{% else %}` +
		`{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}{% endif %}`
	plainText = `{% if message['content'] is string %}{{ message['content'] }}{% else %}` +
		`{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}`

	videoLLaMAContent = `{% if message['content'] is string %}{{ message['content'] }}{% else %}` +
		`{% set own = namespace(videos=0, sounds=0, pictures=0) %}` +
		`{% for part in message['content'] %}` +
		`{% if part['type'] == 'image' %}{% set own.pictures = own.pictures + 1 %}` + onePicture +
		`{% elif part['type'] == 'video' %}{% set own.videos = own.videos + 1 %}` +
		`{% elif part['type'] == 'audio' %}{% set own.sounds = own.sounds + 1 %}{% endif %}{% endfor %}` +
		`{% if own.videos == 1 and own.sounds == 1 %}` + together +
		`{% else %}` +
		`{% for part in message['content'] %}{% if part['type'] == 'audio' %}` + oneSound + `{% endif %}{% endfor %}` +
		`{% for part in message['content'] %}{% if part['type'] == 'video' %}` + oneVideo +
		`{% if part['seconds'] is defined %}The video contains {{ part['seconds'] | length }} frames sampled at {{ part['seconds'] | join(', ') }} seconds. {% endif %}` +
		`{% endif %}{% endfor %}` +
		`{% if own.sounds and not own.videos and not own.pictures %}` + heardOnly + `{% endif %}` +
		`{% endif %}` +
		`{% if own.videos or own.sounds or own.pictures %}{{ ' ' }}{% endif %}` + plainText +
		`{% endif %}`
)

// prompt describes the conversation, and the mark of what is seen and heard, which goes behind the vocabulary.
func (m videoModel) prompt(p *Plan, r *Release, t *blocks.Tensors) {
	image := int(m.text.VocabSize)
	tokenizer := r.Tokenizer
	if tokenizer != nil {
		with, err := withToken(tokenizer, imageHere, image)
		if err != nil {
			t.Problem(tokenizerFile, err.Error())
		} else {
			tokenizer = with
		}
	}
	p.Manifest.Tokens.Image = image
	p.Manifest.Prompt = manifest.Prompt{Expansion: "repeat", Placeholder: imageHere, ImageToken: imageHere, VideoPlaceholder: videoHere,
		Apart: true, Caption: "Describe the video."}
	if r.Options["llama_v2"] != 0 {
		r.addText(p, tokenizer, llamaV2Template, t)
		return
	}
	p.Manifest.Generation.Stop = []string{"###"}
	r.addText(p, tokenizer, videoLLaMATemplate, t)
}

// frames describes how frames are chosen and seen: alpro_video_eval with 8 frames, decord's resize, all in one run.
func (m videoModel) frames(t *blocks.Tensors) *manifest.Video {
	most := int(t.Dim("video.video_frame_position_embedding.weight", 0))
	within(t, "video.video_frame_position_embedding.weight", int64(most), 1, 1<<12)
	return &manifest.Video{Whole: true, Frames: min(8, most), MaxFrames: most, Scaler: "swscale"}
}

// hears describes sound as load_video and ImageBind's load_and_transform_audio_data take it.
func (m videoModel) hears(p *Plan, trunk imageBindAudio, clips, queries int64) {
	p.Manifest.Prompt.AudioPlaceholder = audioHere
	p.Manifest.Audio = &manifest.Audio{
		Recipe: "fbank", Stages: []string{"audio", "audio_connector"}, Features: "audio_projected", Tokens: int(queries),
		SampleRate: 16000, Clips: int(min(8, clips)), ClipSeconds: 2, SharedMean: true, MelBins: int(trunk.mels), Frames: int(trunk.frames),
		WindowMS: 25, ShiftMS: 10, Preemphasis: 0.97, LowHz: 20, Mean: -4.268, Std: 9.138,
	}
}

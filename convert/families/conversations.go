// Conversations that authors keep in their code instead of in the release, as chat templates.

package families

// conversation is a chat template and the token that ends an answer.
type conversation struct {
	template string
	end      string
}

// partsInOrder renders a message's content: texts as they are, a picture as <image>. Behind a picture comes a line break,
// unless the text that follows brings its own space; between is what stands between two pictures.
func partsInOrder(between string) string {
	return `{% if message['content'] is string %}{{ message['content'] }}{% else %}` +
		`{% for part in message['content'] %}` +
		`{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}` +
		`{{ '<image>' if part['type'] == 'image' else '<video>' }}` +
		`{% set next = loop.nextitem %}` +
		`{% if next is defined %}` +
		`{% if next['type'] != 'text' %}` + between +
		`{% elif next['text'][:1] != '\n' and next['text'][:1] != ' ' %}{{ '\n' }}{% endif %}` +
		`{% endif %}{% endif %}{% endfor %}{% endif %}`
}

// picturesFirst renders a message's content with its pictures in front, a line each.
const picturesFirst = `{% if message['content'] is string %}{{ message['content'] }}{% else %}` +
	`{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}` +
	`{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}` +
	`{% endif %}`

const fixedSystem = `{{ raise_exception('This conversation has a fixed system text; roles are user and assistant') }}`

// vicuna is FastChat's conversation in the style "TWO": a system text, USER and ASSISTANT, </s> behind each answer.
func vicuna(system, content string) conversation {
	return conversation{end: "</s>", template: system + `{{ ' ' }}` +
		`{% for message in messages %}` +
		`{% if message['role'] == 'user' %}USER: ` + content + `{{ ' ' }}` +
		`{% elif message['role'] == 'assistant' %}ASSISTANT: ` + content + `</s>` +
		`{% else %}` + fixedSystem + `{% endif %}` +
		`{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}`}
}

// chatML is the conversation in the style "MPT": <|im_start|>role, the text, end. The system text is the conversation's
// unless the messages begin with another.
func chatML(system, end, close string) conversation {
	return conversation{end: end, template: `{% if messages[0]['role'] != 'system' %}<|im_start|>system` + "\n" + system + close + `{% endif %}` +
		`{% for message in messages %}<|im_start|>{{ message['role'] }}{{ '\n' }}` + partsInOrder(`{{ '\n' }}`) + close + `{% endfor %}` +
		`{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}`}
}

// The texts of the conversations.
const (
	curiousHuman = "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the human's questions."
	curiousUser  = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions."
	internSystem = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
	intern25     = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)

var (
	llavaV1  = vicuna(curiousHuman, picturesFirst)
	vicunaV1 = vicuna(curiousUser, partsInOrder(""))
)

// internConversations are those that InternVL's configurations name in template.
var internConversations = map[string]conversation{
	"internvl_zh": {end: "</s>", template: `{{ ' ' }}` +
		`{% for message in messages %}` +
		`{% if message['role'] == 'user' %}<human>: ` + partsInOrder(`{{ '\n' }}`) + `{{ ' ' }}` +
		`{% elif message['role'] == 'assistant' %}<bot>: ` + partsInOrder(`{{ '\n' }}`) + `</s>` +
		`{% else %}` + fixedSystem + `{% endif %}` +
		`{% endfor %}{% if add_generation_prompt %}<bot>:{% endif %}`},
	"Hermes-2":       chatML(internSystem, "<|im_end|>", "<|im_end|>"),
	"internlm2-chat": chatML(internSystem, "<|im_end|>", "<|im_end|>"),
	"internvl2_5":    chatML(intern25, "<|im_end|>", `<|im_end|>{{ '\n' }}`),
}

// The schema as OpenAPI 3.1 (JSON Schema 2020-12) says it.

package spec

// Name is the name of the Go type.
func (s *Schema) Name() string { return s.name }

// OpenAPI returns the schema as a JSON value. Everything that Decode refuses for its form is refused by the schema too.
func (s *Schema) OpenAPI() map[string]any { return s.root.openAPI(field{}) }

func (n *node) openAPI(f field) map[string]any {
	switch n.kind {
	case kindObject:
		return n.objectSchema()
	case kindArray:
		out := map[string]any{"type": "array", "items": n.elem.openAPI(field{maxLen: f.maxLen, enum: f.enum, bounded: f.bounded, low: f.low, high: f.high})}
		if f.counted {
			out["minItems"], out["maxItems"] = f.least, f.most
		}
		return out
	case kindString:
		return n.textSchema(f)
	case kindBoolean:
		return map[string]any{"type": "boolean"}
	case kindTextOr:
		return map[string]any{"oneOf": []any{n.textSchema(f), n.elem.openAPI(f)}}
	case kindRefused:
		return map[string]any{"enum": f.accept}
	case kindJSON:
		return map[string]any{"type": "object"}
	case kindNumbers:
		value := map[string]any{"type": "number"}
		if f.bounded {
			value["minimum"], value["maximum"] = f.low, f.high
		}
		out := map[string]any{"type": "object", "additionalProperties": value}
		if f.counted {
			out["minProperties"], out["maxProperties"] = f.least, f.most
		}
		return out
	}
	out := map[string]any{"type": "number"}
	if n.kind == kindInteger {
		out["type"], out["format"] = "integer", "int64"
	}
	if f.bounded {
		out["minimum"], out["maximum"] = f.low, f.high
	}
	return out
}

func (n *node) textSchema(f field) map[string]any {
	out := map[string]any{"type": "string"}
	if len(f.enum) > 0 {
		out["enum"] = f.enum
	}
	if f.maxLen > 0 {
		out["maxLength"] = f.maxLen
	}
	return out
}

func (n *node) objectSchema() map[string]any {
	properties := map[string]any{}
	required := []string{}
	for _, f := range n.fields {
		p := f.node.openAPI(f)
		switch {
		case f.required:
			required = append(required, f.name)
		case f.node.kind != kindRefused:
			p = map[string]any{"anyOf": []any{p, map[string]any{"type": "null"}}}
		}
		if f.doc != "" {
			p["description"] = f.doc
		}
		if f.node.kind == kindRefused {
			p["description"] = "Not supported: only these values, which ask for nothing, pass."
		}
		properties[f.name] = p
	}
	out := map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		out["required"] = required
	}
	return out
}

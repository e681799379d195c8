// GET /openapi.json, written from the route table and the types that decode requests and encode replies.

package server

import (
	"cmp"
	"net/http"
	"reflect"
	"strings"
)

func (s *Server) openAPI(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, s.document())
	return nil
}

// document is the OpenAPI 3.1 description of the routes.
func (s *Server) document() map[string]any {
	paths := map[string]any{}
	for _, rt := range s.table() {
		item, ok := paths[rt.path].(map[string]any)
		if !ok {
			item = map[string]any{}
			paths[rt.path] = item
		}
		item[strings.ToLower(rt.method)] = s.operation(rt)
	}
	doc := map[string]any{
		"openapi": "3.1.0",
		"info":    map[string]any{"title": "glimpse", "version": "1", "license": map[string]any{"name": "Apache-2.0", "identifier": "Apache-2.0"}},
		"paths":   paths,
		"components": map[string]any{
			"schemas":         map[string]any{"Error": replySchema(reflect.TypeFor[errorBody]())},
			"securitySchemes": map[string]any{"key": map[string]any{"type": "http", "scheme": "bearer"}},
		},
	}
	if s.keys != nil {
		doc["security"] = []any{map[string]any{"key": []string{}}}
	}
	return doc
}

func (s *Server) operation(rt route) map[string]any {
	content := map[string]any{}
	switch {
	case rt.doc.reply != nil:
		content["application/json"] = map[string]any{"schema": replySchema(reflect.TypeOf(rt.doc.reply))}
	default:
		content[cmp.Or(rt.doc.text, "text/plain")] = map[string]any{"schema": map[string]any{"type": "string"}}
	}
	if rt.doc.events != nil {
		content["text/event-stream"] = map[string]any{"schema": map[string]any{"type": "string", "description": "Events whose data is a JSON object, closed by [DONE]."},
			"x-event-schema": replySchema(reflect.TypeOf(rt.doc.events))}
	}
	failed := map[string]any{"description": "What went wrong.", "content": map[string]any{"application/json": map[string]any{"schema": map[string]any{"$ref": "#/components/schemas/Error"}}}}
	out := map[string]any{
		"summary":     rt.doc.summary,
		"operationId": operationID(rt),
		"responses":   map[string]any{"200": map[string]any{"description": "The reply.", "content": content}, "4XX": failed, "5XX": failed},
	}
	if rt.open {
		out["security"] = []any{}
	}
	if strings.HasSuffix(rt.path, "{id}") {
		out["parameters"] = []any{map[string]any{"name": "id", "in": "path", "required": true, "schema": map[string]any{"type": "string"}}}
	}
	switch {
	case rt.doc.request != nil:
		out["requestBody"] = map[string]any{"required": true, "content": map[string]any{"application/json": map[string]any{"schema": rt.doc.request.OpenAPI()}}}
	case rt.doc.upload != nil:
		out["requestBody"] = map[string]any{"required": true, "content": map[string]any{"multipart/form-data": map[string]any{"schema": uploadSchema(rt.doc.upload)}}}
	}
	return out
}

func operationID(rt route) string {
	words := strings.FieldsFunc(strings.ToLower(rt.method)+rt.path, func(r rune) bool { return strings.ContainsRune("/{}._", r) })
	return strings.Join(words, "_")
}

func uploadSchema(form []formField) map[string]any {
	properties := map[string]any{}
	var required []string
	for _, f := range form {
		p := map[string]any{"type": "string", "description": f.doc}
		switch {
		case f.file:
			p["format"] = "binary"
		case f.integer:
			p["type"], p["minimum"], p["maximum"] = "integer", 1, f.most
		default:
			p["maxLength"] = f.most
		}
		properties[f.name] = p
		if f.required {
			required = append(required, f.name)
		}
	}
	return map[string]any{"type": "object", "properties": properties, "required": required, "additionalProperties": false}
}

// replySchema describes what encoding/json makes of a type: every field is there unless it is omitempty.
func replySchema(t reflect.Type) map[string]any {
	// What encodes itself says of itself what it looks like.
	if own, ok := reflect.Zero(t).Interface().(interface{ replySchema() map[string]any }); ok && t.Kind() != reflect.Pointer {
		return own.replySchema()
	}
	switch t.Kind() {
	case reflect.Pointer:
		return map[string]any{"anyOf": []any{replySchema(t.Elem()), map[string]any{"type": "null"}}}
	case reflect.Struct:
		properties := map[string]any{}
		required := []string{} // null would not be a schema
		for i := range t.NumField() {
			name, option, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
			properties[name] = replySchema(t.Field(i).Type)
			if option == "" {
				required = append(required, name)
			}
		}
		return map[string]any{"type": "object", "properties": properties, "required": required}
	case reflect.Slice:
		// A nil slice is encoded as null, which our types use for "not known".
		return map[string]any{"type": []string{"array", "null"}, "items": replySchema(t.Elem())}
	case reflect.Array:
		return map[string]any{"type": "array", "items": replySchema(t.Elem()), "minItems": t.Len(), "maxItems": t.Len()}
	case reflect.Map:
		return map[string]any{"type": "object"}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Int, reflect.Int32, reflect.Int64:
		return map[string]any{"type": "integer"}
	case reflect.Float32, reflect.Float64:
		return map[string]any{"type": "number"}
	}
	panic("openapi: no schema for " + t.String())
}

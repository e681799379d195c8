// The page at /: ask about a picture, or compare it with texts, in a browser. One embedded file without a build step; its
// Content-Security-Policy names its own script and style by hash, so nothing else can run in it.

package server

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
)

//go:embed playground.html
var playgroundPage string

// playgroundPolicy allows the page's own script and style, pictures and clips that the user brings, and calls to this server.
var playgroundPolicy = fmt.Sprintf(
	"default-src 'none'; script-src '%s'; style-src '%s'; img-src data: blob:; media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	inlineHash(playgroundPage, "script"), inlineHash(playgroundPage, "style"))

// inlineHash is the CSP source of the page's one inline element of this tag.
func inlineHash(page, tag string) string {
	_, rest, _ := strings.Cut(page, "<"+tag+">")
	body, _, _ := strings.Cut(rest, "</"+tag+">")
	sum := sha256.Sum256([]byte(body))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

func (s *Server) playground(w http.ResponseWriter, _ *http.Request) error {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", playgroundPolicy)
	_, err := w.Write([]byte(playgroundPage))
	return err
}

package hub

// Names that come from the user and from the hub, and which of them may become paths.

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

// Reference names a release on a hub.
type Reference struct {
	Repository string // organisation/name
	Revision   string // a branch, a tag, refs/pr/N or a commit
}

func (r Reference) String() string { return r.Repository + "@" + r.Revision }

// Name is the last part of the repository.
func (r Reference) Name() string { return path.Base(r.Repository) }

var (
	namePattern     = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}$`)
	revisionPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._/+-]{0,254}$`)
	commitPattern   = regexp.MustCompile(`^[0-9a-f]{40}$`)
)

// ParseReference reads ORG/NAME or ORG/NAME@REV; without a revision it is main.
func ParseReference(text string) (Reference, error) {
	repository, revision, given := strings.Cut(text, "@")
	if !given {
		revision = "main"
	}
	org, name, ok := strings.Cut(repository, "/")
	if !ok || !goodName(org) || !goodName(name) {
		return Reference{}, kindf(ErrInput, "%q does not name a model on a hub: ORG/NAME or ORG/NAME@REV is due", text)
	}
	if !revisionPattern.MatchString(revision) || strings.Contains(revision, "..") || strings.Contains(revision, "//") || strings.HasSuffix(revision, "/") {
		return Reference{}, kindf(ErrInput, "%q: the revision must be a branch, a tag, refs/pr/N or a commit", text)
	}
	return Reference{repository, revision}, nil
}

// goodName holds for what can be an organisation or a model. "--" separates them in the cache's folders.
func goodName(s string) bool {
	return namePattern.MatchString(s) && !strings.Contains(s, "--") && !strings.Contains(s, "..")
}

const (
	maxPath  = 512
	maxFiles = 100_000
)

// checkPath refuses names of files that would lead out of the folder they are for, or that no file system takes.
func checkPath(name string) error {
	bad := func(why string) error {
		return kindf(ErrHub, "the hub's list has a file %q, whose name %s", shorten(name), why)
	}
	switch {
	case name == "" || len(name) > maxPath:
		return bad("has no usable length")
	case strings.HasPrefix(name, "/"):
		return bad("is an absolute path")
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' || r == ':' || r == '�' }):
		return bad("has characters that no name should have")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." || len(part) > 255 {
			return bad("leads elsewhere")
		}
	}
	return nil
}

// shorten bounds what strangers wrote for a message.
func shorten(text string) string {
	const most = 200
	if len(text) <= most {
		return text
	}
	return fmt.Sprintf("%s… (%d bytes)", strings.ToValidUTF8(text[:most], ""), len(text))
}

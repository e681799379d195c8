package checkpoint

// JSON with duplicate keys refused, which encoding/json accepts silently: in a header, the same tensor name twice means
// that two readers may see different tensors.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
)

type strictDecoder struct{ *json.Decoder }

func newStrictDecoder(data []byte) (*strictDecoder, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("the JSON is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return &strictDecoder{d}, nil
}

// token reads a token and turns the decoder's end of file into an error that says what it means.
func (d *strictDecoder) token() (json.Token, error) {
	t, err := d.Token()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, errors.New("the JSON ends too early")
	}
	if err != nil {
		return nil, fmt.Errorf("the JSON is broken at byte %d: %w", d.InputOffset(), err)
	}
	return t, nil
}

// delim wants one of { } [ ].
func (d *strictDecoder) delim(want json.Delim, what string) error {
	t, err := d.token()
	if err != nil {
		return err
	}
	if t != want {
		return fmt.Errorf("%s: found %s where %v was expected", what, shownToken(t), want)
	}
	return nil
}

// object calls value for each key of the next object; value must consume the key's value.
func (d *strictDecoder) object(what string, value func(key string) error) error {
	if err := d.delim('{', what); err != nil {
		return err
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.token()
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok {
			return fmt.Errorf("%s: found %s where a key was expected", what, shownToken(t))
		}
		if seen[key] {
			return fmt.Errorf("%s: key %s appears twice", what, quoted(key))
		}
		seen[key] = true
		if err := value(key); err != nil {
			return err
		}
	}
	return d.delim('}', what)
}

func (d *strictDecoder) string(what string) (string, error) {
	t, err := d.token()
	if err != nil {
		return "", err
	}
	s, ok := t.(string)
	if !ok {
		return "", fmt.Errorf("%s: found %s where a string was expected", what, shownToken(t))
	}
	return s, nil
}

// naturals reads an array of at most most non-negative whole numbers.
func (d *strictDecoder) naturals(what string, most int) ([]int64, error) {
	if err := d.delim('[', what); err != nil {
		return nil, err
	}
	numbers := []int64{}
	for d.More() {
		t, err := d.token()
		if err != nil {
			return nil, err
		}
		n, ok := t.(json.Number)
		if !ok {
			return nil, fmt.Errorf("%s: found %s where a number was expected", what, shownToken(t))
		}
		v, err := strconv.ParseUint(n.String(), 10, 63)
		if err != nil {
			return nil, fmt.Errorf("%s: %s is not a whole number from 0 to 2^63-1", what, n)
		}
		if len(numbers) == most {
			return nil, fmt.Errorf("%s: more than %d numbers", what, most)
		}
		numbers = append(numbers, int64(v))
	}
	return numbers, d.delim(']', what)
}

// end wants nothing but white space after the value.
func (d *strictDecoder) end() error {
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("something follows the JSON at byte %d", d.InputOffset())
	}
	return nil
}

func shownToken(t json.Token) string {
	switch v := t.(type) {
	case string:
		return quoted(v)
	case nil:
		return "null"
	default:
		return fmt.Sprint(v)
	}
}

package worker

import (
	"bytes"
	"errors"
	"math"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"glimpse/engine"
)

// travellers are the types that go over the socket.
var travellers = []any{
	hello{}, engine.Request{}, engine.Token{}, engine.Result{}, engine.Prepared{}, engine.ScoreRequest{}, engine.ScoreResult{},
	engine.EmbedRequest{}, engine.EmbedResult{}, engine.RerankRequest{}, engine.RerankResult{}, Info{}, failure{},
}

// fill gives every field that travels a value; choose picks the size of lists, nil and presence of pointers.
func fill(t *rapid.T, v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, "bool"))
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n := rapid.Int64().Draw(t, "int")
		v.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(rapid.Uint64().Draw(t, "uint"))
	case reflect.Float32, reflect.Float64:
		v.SetFloat(rapid.SampledFrom([]float64{0, -1.5, math.MaxFloat32, math.Inf(-1), math.Inf(1)}).Draw(t, "float"))
	case reflect.String:
		v.SetString(string(rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "text"))) // any bytes
	case reflect.Pointer:
		if rapid.Bool().Draw(t, "there") {
			v.Set(reflect.New(v.Type().Elem()))
			fill(t, v.Elem())
		}
	case reflect.Slice:
		if n := rapid.IntRange(-1, 3).Draw(t, "length"); n >= 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				fill(t, v.Index(i))
			}
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(t, v.Index(i))
		}
	case reflect.Map:
		if n := rapid.IntRange(-1, 3).Draw(t, "entries"); n >= 0 {
			v.Set(reflect.MakeMap(v.Type()))
			for range n {
				key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
				fill(t, key)
				fill(t, value)
				v.SetMapIndex(key, value)
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if travels(v.Type().Field(i)) {
				fill(t, v.Field(i))
			}
		}
	default:
		t.Fatalf("%s does not travel: the codec must learn it, or it must not be in a type that does", v.Type())
	}
}

// What arrives is what was sent, to nil and empty, whatever the engine's types become.
func TestValuesArriveAsSent(t *testing.T) {
	for _, kind := range travellers {
		t.Run(reflect.TypeOf(kind).String(), rapid.MakeCheck(func(t *rapid.T) {
			sent := reflect.New(reflect.TypeOf(kind)).Elem()
			fill(t, sent)
			raw, err := encode(sent.Interface())
			if err != nil {
				t.Fatal(err)
			}
			got := reflect.New(reflect.TypeOf(kind))
			if err := decode(raw, got.Interface()); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(sent.Interface(), got.Elem().Interface()) {
				t.Fatalf("sent %#v\ngot  %#v", sent.Interface(), got.Elem().Interface())
			}
			if len(raw) > 0 {
				if err := decode(raw[:len(raw)-1], reflect.New(reflect.TypeOf(kind)).Interface()); !errors.Is(err, errProtocol) {
					t.Fatalf("a byte less: %v", err)
				}
			}
			if err := decode(append(raw, 0), reflect.New(reflect.TypeOf(kind)).Interface()); !errors.Is(err, errProtocol) {
				t.Fatalf("a byte more: %v", err)
			}
		}))
	}
}

func TestTypesThatDoNotTravel(t *testing.T) {
	for _, v := range []any{make(chan int), struct{ X any }{1}, complex(1, 2)} {
		if _, err := encode(v); err == nil {
			t.Errorf("%T was encoded", v)
		}
	}
}

func TestSchemaKnowsFields(t *testing.T) {
	a := schemaOf(struct{ A int }{})
	for _, other := range []any{struct{ B int }{}, struct{ A int32 }{}, struct{ A []int }{}, struct{ A *int }{}, struct{ A, B int }{}} {
		if schemaOf(other) == a {
			t.Errorf("%T has the schema of struct{A int}", other)
		}
	}
	if schemaOf(struct {
		A int
		F func()
		b int
	}{}) != a {
		t.Error("what does not travel is in the schema")
	}
}

func TestErrorsArriveAsSent(t *testing.T) {
	for _, sentinel := range sentinels {
		got := failureOf(errors.Join(errors.New("first"), sentinel)).err()
		if !errors.Is(got, sentinel) || got.Error() != "first\n"+sentinel.Error() {
			t.Errorf("%v became %v", sentinel, got)
		}
	}
	request := &engine.RequestError{Param: "messages[1]", Code: engine.CodeImage, Message: "no picture", Err: engine.ErrPicture}
	var got *engine.RequestError
	if !errors.As(failureOf(request).err(), &got) || !errors.Is(got, engine.ErrPicture) {
		t.Fatalf("%v", got)
	}
	if d := cmp.Diff(request.Param+request.Code+request.Message, got.Param+got.Code+got.Message); d != "" {
		t.Error(d)
	}
	if err := (failure{Message: "x", Sentinel: 1000}).err(); err.Error() != "x" || errors.Unwrap(err) != nil {
		t.Errorf("%v", err)
	}
}

// An error that the engine grows must be known here, or callers no longer find it.
func TestEverySentinelTravels(t *testing.T) {
	raw, err := os.ReadFile("../engine/api.go")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^(?:var|\t)\s*Err\w+\s*= errors\.New\("(.*)"\)`).FindAllStringSubmatch(string(raw), -1)
	if len(found) < 10 {
		t.Fatalf("only %d errors in engine/api.go", len(found))
	}
	for _, m := range found {
		if !slices.ContainsFunc(sentinels, func(s error) bool { return s.Error() == m[1] }) {
			t.Errorf("the engine's error %q is not among sentinels", m[1])
		}
	}
}

func TestMalformedFrames(t *testing.T) {
	good := frame{kind: kindToken, id: 7, payload: []byte("abc")}
	whole := append(good.header(), good.payload...)
	for name, raw := range map[string][]byte{
		"half a header":  whole[:5],
		"half a payload": whole[:len(whole)-1],
		"kind 0":         {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"unknown kind":   {0, 0, 0, 0, byte(kindEnd), 0, 0, 0, 0, 0, 0, 0, 0},
		"too long":       {0xff, 0xff, 0xff, 0xff, byte(kindToken), 0, 0, 0, 0, 0, 0, 0, 0},
		"long and cut":   append([]byte{0, 0, 0, 0x10, byte(kindToken), 0, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 100)...),
	} {
		if _, err := readFrame(bytes.NewReader(raw), maxPayload); !errors.Is(err, errProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	got, err := readFrame(bytes.NewReader(whole), 3)
	if err != nil || !reflect.DeepEqual(got, good) {
		t.Errorf("%+v, %v", got, err)
	}
}

// Lengths of strangers allocate nothing by themselves.
func TestAnnouncedLengthsAreNotBelieved(t *testing.T) {
	header := frame{kind: kindGenerate, id: 1}.header()
	header[3] = 0x1f // 496 MiB
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := readFrame(bytes.NewReader(header), maxPayload)
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; err == nil || got > 1<<20 {
		t.Errorf("%v, %d bytes allocated", err, got)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(frame{kind: kindPing}.header())
	f.Add(append(frame{kind: kindToken, id: 1, payload: []byte{1}}.header(), 1))
	f.Add([]byte{255, 255, 255, 255, 2, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := readFrame(bytes.NewReader(raw), 1<<20)
		if err != nil {
			return
		}
		if again := append(got.header(), got.payload...); !bytes.HasPrefix(raw, again) {
			t.Errorf("%x was read as %x", raw, again)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for i, v := range travellers {
		raw, err := encode(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), raw)
	}
	f.Fuzz(func(t *testing.T, which uint8, raw []byte) {
		kind := reflect.TypeOf(travellers[int(which)%len(travellers)])
		v := reflect.New(kind)
		if decode(raw, v.Interface()) != nil {
			return
		}
		again, err := encode(v.Elem().Interface())
		if err != nil {
			t.Fatal(err)
		}
		w := reflect.New(kind)
		if err := decode(again, w.Interface()); err != nil {
			t.Errorf("what was decoded from %x does not come back: %v", raw, err)
		}
	})
}

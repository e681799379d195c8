// Object stores, spoken to over their own protocols: S3 with a server in this process, Google Cloud Storage and Azure Blob
// Storage with programs that stand in for them (make test-stores).

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"glimpse/batch/store"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/google/go-cmp/cmp"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	pq "github.com/parquet-go/parquet-go"
)

// bucket is an object store under test: address is that of a key.
type bucket struct {
	t       *testing.T
	prefix  string // scheme and bucket
	query   string // with its question mark
	objects *store.Store
}

func (b *bucket) address(key string) string {
	return b.prefix + "/" + (&url.URL{Path: key}).EscapedPath() + b.query
}

func (b *bucket) put(key string, content []byte) {
	b.t.Helper()
	path := filepath.Join(b.t.TempDir(), "object")
	overwrite(b.t, path, content)
	folder, name := filepath.Split(key)
	if err := b.objects.Upload(b.address(strings.TrimSuffix(folder, "/")))(context.Background(), (&url.URL{Path: name}).EscapedPath(), path); err != nil {
		b.t.Fatal(err)
	}
}

// below reads every object with a prefix.
func (b *bucket) below(prefix string) map[string]string {
	b.t.Helper()
	found := map[string]string{}
	for o, err := range b.objects.List(context.Background(), b.address(prefix)) {
		if err != nil {
			b.t.Fatal(err)
		}
		in, err := b.objects.Open(context.Background(), o.Address)
		if err != nil {
			b.t.Fatal(err)
		}
		raw, err := io.ReadAll(in)
		in.Close()
		if err != nil || int64(len(raw)) != o.Size {
			b.t.Fatalf("%s: %d bytes of %d: %v", o.Address, len(raw), o.Size, err)
		}
		found[strings.TrimPrefix(o.Address, b.address(prefix)[:len(b.address(prefix))-len(b.query)])] = string(raw)
	}
	return found
}

// count is how many objects a prefix has.
func (b *bucket) count(prefix string) (n int) {
	b.t.Helper()
	for _, err := range b.objects.List(context.Background(), b.address(prefix)) {
		if err != nil {
			b.t.Fatal(err)
		}
		n++
	}
	return n
}

// names that have to survive addresses, signatures and lists.
var objectNames = []string{"a b", "ü–ß", "50% off", "plus+equals=", "hash#question?", "quote'", "deep/er"}

// proveStore takes a bucket that is there and empty through everything that caption does with one.
func proveStore(t *testing.T, b *bucket) {
	m := model(t)
	const n = 60
	for i := range n {
		extension, content := mixedPicture(t, i)
		name := fmt.Sprintf("in/%03d%s", i, extension)
		if i < len(objectNames) {
			name = fmt.Sprintf("in/%03d %s%s", i, objectNames[i], extension)
		}
		b.put(name, content)
	}
	b.put("in/notes.bin", []byte("no picture"))
	args := func(out string, more ...string) []string {
		return append([]string{"caption", m, b.address("in/"), "-o", b.address(out), "--state", filepath.Join(t.TempDir(), "state"),
			"--part-rows", "8", "--reproducible", "--max-tokens", "6"}, more...)
	}
	for _, format := range []string{"webdataset", "parquet"} {
		whole, killed := "whole-"+format, "killed-"+format
		r := glimpse(t, args(whole, "--format", format)...)
		if r.code != exitFound || !strings.Contains(r.stderr, "60 written") {
			t.Fatalf("exit %d: %s", r.code, r.stderr)
		}
		again := args(killed, "--format", format)
		kills := 0
		for round := range 5 {
			cmd := command(t, again...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			before := b.count(killed + "/")
			for deadline := time.Now().Add(20 * time.Second); b.count(killed+"/") == before && time.Now().Before(deadline); {
				time.Sleep(2 * time.Millisecond)
			}
			time.Sleep(rand.N(time.Duration(1+round) * 10 * time.Millisecond))
			_ = cmd.Process.Signal(syscall.SIGKILL)
			if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() == -1 {
				kills++
			}
		}
		if r := glimpse(t, again...); r.code != exitFound {
			t.Fatalf("exit %d: %s", r.code, r.stderr)
		}
		want, got := b.below(whole+"/"), b.below(killed+"/")
		if d := cmp.Diff(want, got); d != "" || len(want) != 8*2+1 {
			t.Errorf("%s: %d objects; killed %d times (-undisturbed +killed):\n%.2000s", format, len(want), kills, d)
		}
		if kills == 0 {
			t.Errorf("%s: no run was killed", format)
		}
		t.Logf("%s: %d objects equal to the byte after %d kills", format, len(want), kills)
	}
	proveTables(t, b, m)
}

// proveTables reads what names pictures, or holds them, from the store, and puts its pictures on a queue by reference.
func proveTables(t *testing.T, b *bucket, m string) {
	folder := t.TempDir()
	direct := filepath.Join(folder, "direct.jsonl")
	if r := glimpse(t, "caption", m, b.address("in/"), "-o", direct, "--reproducible", "--max-tokens", "6"); r.code != exitFound {
		t.Fatalf("exit %d: %s", r.code, r.stderr)
	}
	rows := readRows(t, direct)
	if len(rows) != 60 {
		t.Fatalf("%d rows", len(rows))
	}
	queued := filepath.Join(folder, "queued.jsonl")
	if r := glimpse(t, "caption", m, b.address("in/"), "-o", queued, "--reproducible", "--max-tokens", "6", "--queue", "--queue-listen", "127.0.0.1:0"); r.code != exitFound {
		t.Fatalf("queue: exit %d: %s", r.code, r.stderr)
	}
	if d := cmp.Diff(rows, readRows(t, queued)); d != "" {
		t.Errorf("by reference over a queue (-direct +queue):\n%s", d)
	}
	type named struct {
		URL string `parquet:"url"`
	}
	var list, table bytes.Buffer
	out := pq.NewGenericWriter[named](&table)
	for _, r := range rows {
		fmt.Fprintln(&list, r.ID)
		if _, err := out.Write([]named{{r.ID}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&list, b.address("in/none.png"))
	b.put("tables/list.txt", list.Bytes())
	b.put("tables/table.parquet", table.Bytes())
	b.put("tables/shard.tar.gz", shard(t, 10))
	for input, want := range map[string]int{"list.txt": 61, "table.parquet": 60, "shard.tar.gz": 10} {
		path := filepath.Join(folder, input+".jsonl")
		if r := glimpse(t, "caption", m, b.address("tables/"+input), "-o", path, "--reproducible", "--max-tokens", "6"); r.code != exitFound {
			t.Errorf("%s: exit %d: %s", input, r.code, r.stderr)
			continue
		}
		got := readRows(t, path)
		if len(got) != want {
			t.Errorf("%s: %d rows, want %d", input, len(got), want)
			continue
		}
		if input == "shard.tar.gz" {
			continue
		}
		if input == "list.txt" {
			if last := got[60]; last.Error == nil || last.Error.Kind != "missing" {
				t.Errorf("an object that is not there: %+v", last.Error)
			}
		}
		if d := cmp.Diff(rows, got[:60]); d != "" {
			t.Errorf("%s (-folder +table):\n%.2000s", input, d)
		}
	}
}

// shard is a WebDataset of n mixed pictures.
func shard(t *testing.T, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for i := range n {
		extension, content := mixedPicture(t, i)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%04d%s", i, extension), Size: int64(len(content)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func newBucket(t *testing.T, prefix, query string) *bucket {
	b := &bucket{t: t, prefix: prefix, query: query, objects: store.New()}
	t.Cleanup(func() { b.objects.Close() })
	return b
}

func TestS3(t *testing.T) {
	backend := s3mem.New()
	if err := backend.CreateBucket("pictures"); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(gofakes3.New(backend, gofakes3.WithoutVersioning()).Server())
	t.Cleanup(server.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	query := "?" + url.Values{"endpoint": {server.URL}, "region": {"us-east-1"}, "use_path_style": {"true"}}.Encode()
	proveStore(t, newBucket(t, "s3://pictures", query))

	r := glimpse(t, "caption", model(t), "s3://no-such-bucket/in/"+query, "-o", filepath.Join(t.TempDir(), "out.jsonl"))
	if r.code != exitFound || !strings.Contains(r.stderr, "missing 1") {
		t.Errorf("a bucket that is not there: exit %d: %s", r.code, r.stderr)
	}
}

// stand starts a program that stands in for a cloud and waits until it listens.
func stand(t *testing.T, address string, program string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s ended: %s", program, said.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen on %s", program, address)
		}
	}
}

func freeAddress(t *testing.T) (host, port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return host, port
}

func TestGoogleCloudStorage(t *testing.T) {
	program := os.Getenv("GLIMPSE_FAKE_GCS")
	if program == "" {
		t.Skip("needs fake-gcs-server: make test-stores")
	}
	host, port := freeAddress(t)
	address := net.JoinHostPort(host, port)
	stand(t, address, program, "-scheme", "http", "-host", host, "-port", port, "-backend", "memory", "-public-host", address, "-external-url", "http://"+address)
	reply, err := http.Post("http://"+address+"/storage/v1/b?project=p", "application/json", strings.NewReader(`{"name":"pictures"}`))
	if err != nil {
		t.Fatal(err)
	}
	reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		t.Fatal(reply.Status)
	}
	t.Setenv("STORAGE_EMULATOR_HOST", address)
	proveStore(t, newBucket(t, "gs://pictures", ""))
}

func TestAzureBlobStorage(t *testing.T) {
	program := os.Getenv("GLIMPSE_AZURITE")
	if program == "" {
		t.Skip("needs azurite-blob: make test-stores")
	}
	host, port := freeAddress(t)
	address := net.JoinHostPort(host, port)
	stand(t, address, program, "--blobHost", host, "--blobPort", port, "--location", t.TempDir(), "--silent", "--skipApiVersionCheck")
	// The account that the emulator is documented with.
	const account, key = "devstoreaccount1", "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
	t.Setenv("AZURE_STORAGE_ACCOUNT", account)
	t.Setenv("AZURE_STORAGE_KEY", key)
	credential, err := azblob.NewSharedKeyCredential(account, key)
	if err != nil {
		t.Fatal(err)
	}
	client, err := azblob.NewClientWithSharedKeyCredential("http://"+address+"/"+account, credential, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CreateContainer(t.Context(), "pictures", nil); err != nil {
		t.Fatal(err)
	}
	query := "?" + url.Values{"protocol": {"http"}, "domain": {address}, "localemu": {"true"}}.Encode()
	proveStore(t, newBucket(t, "azblob://pictures", query))
}

package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificate writes a self-signed one for 127.0.0.1 and returns a client configuration that trusts it.
func certificate(t *testing.T) (certFile, keyFile string, trust *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for file, data := range map[string][]byte{certFile: certPEM, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return certFile, keyFile, &tls.Config{RootCAs: pool}
}

// Over TLS and HTTP/2: an answer, a stream that its client leaves, and a body that does not come.
func TestTLS(t *testing.T) {
	t.Parallel()
	cert, key, trust := certificate(t)
	fake := newFake("tiny")
	ended := make(chan struct{})
	fake.eachWord = func(ctx context.Context, word int) error {
		if word < 5 {
			return nil
		}
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}
	base, s := start(t, Options{Models: []Model{fake}, TLSCert: cert, TLSKey: key, Limits: Limits{BodyTimeout: time.Second}})
	base = strings.Replace(base, "http://", "https://", 1)
	transport := &http.Transport{TLSClientConfig: trust, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	c := &http.Client{Transport: transport}
	send := func(body io.Reader) *http.Response {
		resp, err := c.Post(base+"/v1/chat/completions", "application/json", body)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	resp := send(strings.NewReader(goodChat))
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || resp.ProtoMajor != 2 || resp.Header.Get("Strict-Transport-Security") == "" || !strings.Contains(string(raw), "a b c") {
		t.Errorf("%s %d %v %s", resp.Proto, resp.StatusCode, err, raw)
	}
	_ = resp.Body.Close()

	resp = send(strings.NewReader(`{"model":"tiny","messages":[{"role":"user","content":"a b c d e f g h"}],"stream":true}`))
	if _, err := io.ReadFull(resp.Body, make([]byte, 10)); err != nil {
		t.Error(err)
	}
	_ = resp.Body.Close()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the model goes on for a client that is gone")
	}
	waitFor(t, func() bool { return s.models[0].gate.inFlight() == 0 })

	never, hold := io.Pipe()
	defer hold.Close()
	resp = send(never)
	if e := failure(t, resp.StatusCode, resp.Body); resp.StatusCode != http.StatusRequestTimeout || text(e.Code) != codeSlowBody {
		t.Errorf("slow body: %d %+v", resp.StatusCode, e)
	}
	_ = resp.Body.Close()
}

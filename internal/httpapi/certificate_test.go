package httpapi_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millracehq/millrace/internal/httpapi"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// write replaces a certificate as a renewal tool does: each file atomically.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()

	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, "new"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}

		if err := os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// served returns the certificate that a server presents to a new connection.
func served(t *testing.T, addr string) *x509.Certificate {
	t.Helper()

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, ForceAttemptHTTP2: true}} //nolint:gosec // the test inspects the certificate

	response, err := client.Get("https://" + addr + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()

	return response.TLS.PeerCertificates[0]
}

func TestARenewedCertificateIsUsedWithoutARestart(t *testing.T) {
	t.Parallel()

	dir := t.TempDir()
	authority := brokertest.NewAuthority(t)
	first, firstKey := authority.Issue("first.example")
	second, secondKey := authority.Issue("second.example")

	write(t, dir, map[string]string{"crt": first, "key": firstKey})

	server := serve(t, httpapi.Config{
		Addr: "127.0.0.1:0", WebhooksAddr: "127.0.0.1:0", TLS: httpapi.TLSFiles,
		CertFile: filepath.Join(dir, "crt"), KeyFile: filepath.Join(dir, "key"),
	}, httpapi.HealthConfig{Addr: "127.0.0.1:0"}, httpapi.State{})

	expect := func(when, name string) {
		t.Helper()

		for _, addr := range []string{server.Addr(), server.WebhooksAddr()} {
			if got := served(t, addr).Subject.CommonName; got != name {
				t.Errorf("%s: got the certificate of %s, expected that of %s", when, got, name)
			}
		}
	}

	expect("at first", "first.example")
	write(t, dir, map[string]string{"crt": second})
	expect("while the key does not match yet", "first.example")
	write(t, dir, map[string]string{"key": secondKey})
	expect("after the renewal", "second.example")

	if err := os.Remove(filepath.Join(dir, "crt")); err != nil {
		t.Fatal(err)
	}

	expect("while the file is missing", "second.example")

	if response, err := http.Get("http://" + server.Addr() + "/"); err == nil {
		_ = response.Body.Close()

		if response.StatusCode != http.StatusBadRequest {
			t.Errorf("without TLS: got %s", response.Status)
		}
	}
}

func TestACertificateThatCannotBeReadIsRefusedAtTheStart(t *testing.T) {
	t.Parallel()

	dir := t.TempDir()
	authority := brokertest.NewAuthority(t)
	first, _ := authority.Issue("first.example")
	_, other := authority.Issue("other.example")

	write(t, dir, map[string]string{"crt": first, "key": other, "junk": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE"}))})

	for _, c := range []struct{ cert, key, want string }{
		{"missing", "key", "no such file"},
		{"crt", "key", "private key does not match public key"},
		{"junk", "key", "malformed certificate"},
	} {
		server, err := httpapi.NewServer(httpapi.Config{
			Addr: "127.0.0.1:0", TLS: httpapi.TLSFiles, CertFile: filepath.Join(dir, c.cert), KeyFile: filepath.Join(dir, c.key),
		}, httpapi.HealthConfig{Addr: "127.0.0.1:0"}, nil, pgtest.Logger(t), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}

		err = server.Listen()
		if err == nil || !strings.Contains(err.Error(), "http.cert_file") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %s: got %v, expected %q", c.cert, c.key, err, c.want)
		}
	}
}

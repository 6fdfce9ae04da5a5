package tlsconfig_test

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"os"
	"testing"

	"github.com/millracehq/millrace/internal/engine/tlsconfig"
	"github.com/millracehq/millrace/internal/test/brokertest"
)

func TestARenewedCertificateIsPresented(t *testing.T) {
	t.Parallel()

	authority := brokertest.NewAuthority(t)
	cert, key := authority.Issue("first")
	certFile, keyFile := brokertest.File(t, cert), brokertest.File(t, key)

	cfg, err := tlsconfig.New("")
	if err != nil {
		t.Fatal(err)
	}

	if err := tlsconfig.Present(cfg, certFile, keyFile); err != nil {
		t.Fatal(err)
	}

	renewed, key := authority.Issue("second")
	if err := os.WriteFile(certFile, []byte(renewed), 0o600); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(keyFile, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}

	presented, err := cfg.GetClientCertificate(&tls.CertificateRequestInfo{})
	if block, _ := pem.Decode([]byte(renewed)); err != nil || !bytes.Equal(presented.Certificate[0], block.Bytes) {
		t.Errorf("the old certificate is presented (%v)", err)
	}

	if err := tlsconfig.Present(cfg, certFile, certFile); err == nil {
		t.Error("a certificate is accepted as a key")
	}
}

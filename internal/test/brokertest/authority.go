package brokertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority issues certificates for servers on this machine and for their clients.
type Authority struct {
	// Certificate is the authority's own, as PEM.
	Certificate string

	tb   testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority returns a new authority, which nobody trusts yet.
func NewAuthority(tb testing.TB) *Authority {
	tb.Helper()

	a := &Authority{tb: tb, cert: &x509.Certificate{
		Subject: pkix.Name{CommonName: "Test CA " + rand.Text()}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	a.Certificate, _, a.key = a.issue(a.cert)

	block, _ := pem.Decode([]byte(a.Certificate))

	var err error
	if a.cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		tb.Fatal(err)
	}

	return a
}

// Issue returns a certificate for 127.0.0.1 with a common name, and its key, as PEM.
func (a *Authority) Issue(name string) (cert, key string) {
	a.tb.Helper()

	cert, key, _ = a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})

	return cert, key
}

// issue signs a certificate with the authority's key, or with the new key if the
// authority has none yet.
func (a *Authority) issue(template *x509.Certificate) (cert, key string, private *ecdsa.PrivateKey) {
	a.tb.Helper()

	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.tb.Fatal(err)
	}

	signer := a.key
	if signer == nil {
		signer = private
	}

	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)

	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, private.Public(), signer)
	if err != nil {
		a.tb.Fatal(err)
	}

	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.tb.Fatal(err)
	}

	encode := func(kind string, bytes []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes}))
	}

	return encode("CERTIFICATE", der), encode("PRIVATE KEY", pkcs8), private
}

// File writes text to a file of its own and returns its name.
func File(tb testing.TB, text string) string {
	tb.Helper()

	name := filepath.Join(tb.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}

	return name
}

// Package tlsconfig creates the TLS settings for all outgoing connections.
package tlsconfig

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// New returns settings that verify the server with the certificates in caFile, or
// with the system's roots if caFile is empty.
func New(caFile string) (*tls.Config, error) {
	return verifying(x509.NewCertPool(), caFile)
}

// Trusting returns settings that verify the server with the system's roots, and with the
// certificates in caFile if it is not empty.
func Trusting(caFile string) (*tls.Config, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("reading the system's roots: %w", err)
	}

	return verifying(roots, caFile)
}

func verifying(roots *x509.CertPool, caFile string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return cfg, nil
	}

	certificates, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("reading CA certificates: %w", err)
	}

	if !roots.AppendCertsFromPEM(certificates) {
		return nil, fmt.Errorf("%s contains no certificate", caFile)
	}

	cfg.RootCAs = roots

	return cfg, nil
}

// Present makes clients that use cfg present a certificate. The files are read for each
// connection, so the certificate can be renewed while the service runs. Without
// certFile, Present does nothing.
func Present(cfg *tls.Config, certFile, keyFile string) error {
	if certFile == "" {
		return nil
	}

	load := func() (*tls.Certificate, error) {
		certificate, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate: %w", err)
		}

		return &certificate, nil
	}

	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }

	_, err := load()

	return err
}

// Pinned returns settings that accept only the first certificate in chain (PEM),
// regardless of its issuer and names. They are for a server whose certificate file is
// available.
func Pinned(chain []byte) (*tls.Config, error) {
	block, _ := pem.Decode(chain)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("the file contains no certificate")
	}

	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection is stricter
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 || !bytes.Equal(state.PeerCertificates[0].Raw, block.Bytes) {
				return errors.New("the server's certificate is not the one in the file")
			}

			return nil
		},
	}, nil
}

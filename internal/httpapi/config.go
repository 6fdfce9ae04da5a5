package httpapi

import (
	"errors"
	"fmt"
	"net"

	"github.com/millracehq/millrace/internal/engine/check"
)

// Config configures the listeners for operators and for webhooks.
type Config struct {
	// Addr is the host:port of the operator API, on loopback, because it has no
	// authentication. Defaults to 127.0.0.1:9464.
	Addr string `koanf:"addr"`
	// WebhooksAddr is a host:port for webhooks alone, so that a provider cannot reach
	// the operator API. Defaults to none: Addr serves them.
	WebhooksAddr string `koanf:"webhooks_addr"`
	// TLS says who encrypts: TLSFiles, TLSTerminated or TLSNone. Defaults to none.
	TLS string `koanf:"tls"`
	// CertFile and KeyFile hold the certificate chain and its key in PEM, for TLSFiles.
	// They are read again when they change.
	CertFile string `koanf:"cert_file"`
	KeyFile  string `koanf:"key_file"`
}

// Values of Config.TLS.
const (
	TLSNone       = "none"       // nobody
	TLSFiles      = "files"      // the service, with CertFile and KeyFile
	TLSTerminated = "terminated" // a proxy in front of it
)

// HealthConfig configures the listener for probes and metrics.
type HealthConfig struct {
	// Addr is its host:port. Defaults to 127.0.0.1:9465.
	Addr string `koanf:"addr"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config { return Config{Addr: "127.0.0.1:9464", TLS: TLSNone} }

// DefaultHealthConfig returns the defaults.
func DefaultHealthConfig() HealthConfig { return HealthConfig{Addr: "127.0.0.1:9465"} }

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	errs := []error{
		check.Value(isAddress(c.Addr), "http.addr", c.Addr, "host:port, for example 127.0.0.1:9464"),
		check.Value(c.WebhooksAddr == "" || isAddress(c.WebhooksAddr), "http.webhooks_addr", c.WebhooksAddr, "host:port, for example 127.0.0.1:9466"),
		check.Value(c.TLS == TLSNone || c.TLS == TLSFiles || c.TLS == TLSTerminated, "http.tls", c.TLS, "none, files or terminated"),
	}

	if c.TLS == TLSFiles {
		errs = append(errs, check.That(c.CertFile != "", "http.cert_file: is missing, expected the certificate chain in PEM, because http.tls is files"),
			check.That(c.KeyFile != "", "http.key_file: is missing, expected the key of http.cert_file in PEM, because http.tls is files"))
	} else {
		errs = append(errs, check.That(c.CertFile == "" && c.KeyFile == "", "http.cert_file, http.key_file: are set, but not used; set http.tls to files"))
	}

	if isAddress(c.Addr) && exposed(c.Addr) {
		errs = append(errs, fmt.Errorf("http.addr: is %q, expected a loopback address: the listener has no authentication", c.Addr))
	}

	if c.WebhooksAddr != "" && exposed(c.WebhooksAddr) && c.TLS == TLSNone {
		errs = append(errs, fmt.Errorf("http.webhooks_addr: is %q, which other machines reach, and http.tls is none; %s", c.WebhooksAddr, setTLS))
	}

	return errors.Join(errs...)
}

// setTLS is the remedy for a listener without TLS.
const setTLS = "set http.tls to files, with http.cert_file and http.key_file, or to terminated if a proxy in front does TLS; or use a loopback address"

// Validate reports all mistakes, naming the keys.
func (c HealthConfig) Validate() error {
	return check.Value(isAddress(c.Addr), "health.addr", c.Addr, "host:port, for example 127.0.0.1:9465")
}

func isAddress(addr string) bool {
	_, _, err := net.SplitHostPort(addr)

	return err == nil
}

// exposed reports whether other machines reach a listener at addr.
func exposed(addr string) bool {
	host, _, err := net.SplitHostPort(addr)

	return err == nil && !check.Loopback(host)
}

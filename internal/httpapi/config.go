package httpapi

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/tlsconfig"
)

// Config configures the listeners for operators and for webhooks.
type Config struct {
	// Addr is the host:port of the operator API. An address that other machines can
	// reach needs Authentication and TLS. Defaults to 127.0.0.1:9464.
	Addr string `koanf:"addr"`
	// Authentication says whether the operator API authenticates requests:
	// AuthenticationRequired or AuthenticationNone, which is for loopback without a proxy
	// in front. Defaults to none.
	Authentication string `koanf:"authentication"`
	// Token is the token that commands send to the operator API.
	Token postgres.Secret `koanf:"token"`
	// OIDC is a provider whose tokens are accepted in addition to API tokens.
	OIDC access.OIDC `koanf:"oidc"`
	// Console says whether Addr also serves the console, at /console/. Defaults to true.
	Console bool `koanf:"console"`
	// WebhooksAddr is a host:port for webhooks alone, so that a provider cannot reach
	// the operator API. By default there is none, and Addr serves webhooks.
	WebhooksAddr string `koanf:"webhooks_addr"`
	// TLS says who encrypts: TLSFiles, TLSTerminated or TLSNone. Defaults to none.
	TLS string `koanf:"tls"`
	// CertFile and KeyFile hold the certificate chain and its key in PEM, for TLSFiles.
	// They are reloaded when they change.
	CertFile string `koanf:"cert_file"`
	KeyFile  string `koanf:"key_file"`
}

// Values of Config.Authentication.
const (
	AuthenticationNone     = "none"
	AuthenticationRequired = "required"
)

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
func DefaultConfig() Config {
	return Config{Addr: "127.0.0.1:9464", Authentication: AuthenticationNone, OIDC: access.DefaultOIDC(), Console: true, TLS: TLSNone}
}

// DefaultHealthConfig returns the defaults.
func DefaultHealthConfig() HealthConfig { return HealthConfig{Addr: "127.0.0.1:9465"} }

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	errs := []error{
		check.Value(isAddress(c.Addr), "http.addr", c.Addr, "host:port, for example 127.0.0.1:9464"),
		check.Value(c.WebhooksAddr == "" || isAddress(c.WebhooksAddr), "http.webhooks_addr", c.WebhooksAddr, "host:port, for example 127.0.0.1:9466"),
		check.Value(c.Authentication == AuthenticationNone || c.Authentication == AuthenticationRequired, "http.authentication", c.Authentication, "none or required"),
		check.Value(c.TLS == TLSNone || c.TLS == TLSFiles || c.TLS == TLSTerminated, "http.tls", c.TLS, "none, files or terminated"),
	}

	if c.TLS == TLSFiles {
		errs = append(errs, check.That(c.CertFile != "", "http.cert_file: is missing, expected the certificate chain in PEM, because http.tls is files"),
			check.That(c.KeyFile != "", "http.key_file: is missing, expected the key of http.cert_file in PEM, because http.tls is files"))
	} else {
		errs = append(errs, check.That(c.CertFile == "" && c.KeyFile == "", "http.cert_file, http.key_file: are set, but not used; set http.tls to files"))
	}

	errs = append(errs, c.reachable(),
		check.That(c.OIDC.Issuer == "" || c.Authentication == AuthenticationRequired, "http.oidc: is set, but not used; set http.authentication to required"))

	return errors.Join(append(errs, c.OIDC.Validate())...)
}

// reachable returns an error if other machines can reach an address that they must not
// reach.
func (c Config) reachable() error {
	var errs []error

	open := c.Authentication != AuthenticationRequired

	switch outside := isAddress(c.Addr) && exposed(c.Addr); {
	case outside && open:
		errs = append(errs, fmt.Errorf("http.addr: is %q, which other machines can reach, and http.authentication is none; set http.authentication to required (`millrace tokens create` creates tokens), or use a loopback address", c.Addr))
	case c.TLS == TLSTerminated && open:
		errs = append(errs, errors.New("http.tls: is terminated, so others can connect through the proxy, and http.authentication is none; set http.authentication to required (`millrace tokens create` creates tokens)"))
	}

	for key, addr := range map[string]string{"http.addr": c.Addr, "http.webhooks_addr": c.WebhooksAddr} {
		if isAddress(addr) && exposed(addr) && c.TLS == TLSNone {
			errs = append(errs, fmt.Errorf("%s: is %q, which other machines can reach, and http.tls is none; %s", key, addr, setTLS))
		}
	}

	return errors.Join(errs...)
}

// setTLS is the remedy for a listener without TLS.
const setTLS = "set http.tls to files, with http.cert_file and http.key_file, or to terminated if a proxy terminates TLS; or use a loopback address"

// Validate reports all mistakes, naming the keys.
func (c HealthConfig) Validate() error {
	return check.Value(isAddress(c.Addr), "health.addr", c.Addr, "host:port, for example 127.0.0.1:9465")
}

func isAddress(addr string) bool {
	_, _, err := net.SplitHostPort(addr)

	return err == nil
}

// exposed reports whether other machines can reach a listener at addr.
func exposed(addr string) bool {
	host, _, err := net.SplitHostPort(addr)

	return err == nil && !check.Loopback(host)
}

// Client returns a client of the operator API for commands on this machine. It trusts
// the certificate that the service itself serves.
func (c Config) Client() (operate.Client, error) {
	client := operate.Client{URL: "http://" + check.Dialable(c.Addr), Token: string(c.Token)}
	if c.TLS != TLSFiles {
		return client, nil
	}

	pem, err := os.ReadFile(c.CertFile)
	if err != nil {
		return client, fmt.Errorf("reading http.cert_file: %w", err)
	}

	client.URL = "https://" + check.Dialable(c.Addr)
	client.TLS, err = tlsconfig.Pinned(pem)

	return client, err
}

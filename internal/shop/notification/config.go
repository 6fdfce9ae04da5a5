package notification

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Config configures notifications.
type Config struct {
	Email   EmailConfig   `koanf:"email"`
	Webhook WebhookConfig `koanf:"webhook"`
	// Retention is how long records of notifications are kept, at least 1h; 0
	// keeps them indefinitely. Defaults to 0.
	Retention time.Duration `koanf:"retention"`
}

// EmailConfig configures the mail server.
type EmailConfig struct {
	// Host is the SMTP server. Without one e-mails are written to the log, which
	// is meant for development. Defaults to none.
	Host string `koanf:"host"`
	// Port defaults to 587.
	Port int `koanf:"port"`
	// TLS is starttls, tls (from the first byte) or none. Defaults to starttls.
	TLS string `koanf:"tls"`
	// CAFile has the certificates that verify the server. Defaults to the
	// system's roots.
	CAFile string `koanf:"ca_file"`
	// User and Password log in to the server. Default to no login.
	User     string          `koanf:"user"`
	Password postgres.Secret `koanf:"password"`
	// From is the sender's address. Defaults to millrace@localhost.
	From string `koanf:"from"`
}

// WebhookConfig configures the receiver of webhooks.
type WebhookConfig struct {
	// URL receives webhooks. Without one the channel is refused. Defaults to
	// none.
	URL string `koanf:"url"`
	// Secret signs webhooks: whsec_ and then 24 to 64 bytes in base64.
	Secret postgres.Secret `koanf:"secret"`
	// AllowNetworks are networks, such as 10.0.0.0/8, that may be reached
	// although they are not public. Defaults to none.
	AllowNetworks []string `koanf:"allow_networks"`
}

// Values of notification.email.tls.
const (
	startTLS = "starttls"
	fullTLS  = "tls"
	noTLS    = "none"
)

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Email:   EmailConfig{Port: 587, TLS: startTLS, From: "millrace@localhost"},
		Webhook: WebhookConfig{AllowNetworks: []string{}},
	}
}

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	errs := []error{c.Email.validate(), c.Webhook.validate()}

	if c.Retention != 0 && c.Retention < time.Hour {
		errs = append(errs, fmt.Errorf("notification.retention: is %s, expected at least 1h, or 0 for no limit", c.Retention))
	}

	return errors.Join(errs...)
}

func (c EmailConfig) validate() error {
	var errs []error

	if c.Port < 1 || c.Port > 65535 {
		errs = append(errs, fmt.Errorf("notification.email.port: is %d, expected 1 to 65535", c.Port))
	}

	if c.TLS != startTLS && c.TLS != fullTLS && c.TLS != noTLS {
		errs = append(errs, fmt.Errorf("notification.email.tls: is %q, expected %s, %s or %s", c.TLS, startTLS, fullTLS, noTLS))
	}

	if c.TLS == noTLS && c.User != "" {
		errs = append(errs, fmt.Errorf("notification.email.user: would send the password unencrypted, expected notification.email.tls %s or %s", startTLS, fullTLS))
	}

	if (c.User == "") != (c.Password == "") {
		errs = append(errs, errors.New("notification.email.user: expected both notification.email.user and notification.email.password, or neither"))
	}

	if _, err := mail.ParseAddress(c.From); err != nil {
		errs = append(errs, fmt.Errorf("notification.email.from: is %q, expected an address such as shop@example.com", c.From))
	}

	return errors.Join(errs...)
}

func (c WebhookConfig) validate() error {
	if c.URL == "" {
		return nil
	}

	var errs []error
	if u, err := url.Parse(c.URL); err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
		errs = append(errs, errors.New("notification.webhook.url: is not a URL, expected https://host/path"))
	}

	if secret, err := c.secret(); err != nil || len(secret) < 24 || len(secret) > 64 {
		errs = append(errs, errors.New("notification.webhook.secret: is not a secret, expected whsec_ and then 24 to 64 bytes in base64 (openssl rand -base64 32)"))
	}

	if _, err := c.networks(); err != nil {
		errs = append(errs, err)
	}

	return errors.Join(errs...)
}

func (c WebhookConfig) secret() ([]byte, error) {
	return base64.StdEncoding.DecodeString(strings.TrimPrefix(string(c.Secret), "whsec_"))
}

func (c WebhookConfig) networks() ([]netip.Prefix, error) {
	networks := make([]netip.Prefix, 0, len(c.AllowNetworks))

	for _, text := range c.AllowNetworks {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("notification.webhook.allow_networks: has %q, expected networks such as 10.0.0.0/8", text)
		}

		networks = append(networks, network)
	}

	return networks, nil
}

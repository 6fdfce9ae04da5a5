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

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
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
	// Host is the SMTP server. Without one, e-mails are only logged, with their user
	// ids. This is meant for development. Defaults to none.
	Host string `koanf:"host"`
	// Port defaults to 587.
	Port int `koanf:"port"`
	// TLS is starttls, tls (from the first byte) or none. Defaults to starttls.
	TLS string `koanf:"tls"`
	// CAFile holds the certificates for verifying the server. Defaults to the system's
	// roots.
	CAFile string `koanf:"ca_file"`
	// User and Password log in to the server. Default to no login.
	User     string          `koanf:"user"`
	Password postgres.Secret `koanf:"password"`
	// From is the sender's address. Defaults to millrace@localhost.
	From string `koanf:"from"`
}

// WebhookConfig configures the receiver of webhooks.
type WebhookConfig struct {
	// URL receives webhooks. Without one, the webhook channel is refused.
	// Defaults to none.
	URL scrub.URL `koanf:"url"`
	// Secret signs webhooks: whsec_ followed by 24 to 64 bytes in base64.
	Secret postgres.Secret `koanf:"secret"`
	// AllowNetworks lists non-public networks that webhooks may reach, such as
	// 10.0.0.0/8. Defaults to none.
	AllowNetworks []string `koanf:"allow_networks"`
	// FinalStatuses lists HTTP statuses after which a webhook is stopped instead of
	// being retried, in addition to 410. Defaults to none.
	FinalStatuses []int `koanf:"final_statuses"`
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
		Webhook: WebhookConfig{AllowNetworks: []string{}, FinalStatuses: []int{}},
	}
}

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	return errors.Join(c.Email.validate(), c.Webhook.validate(),
		check.Value(c.Retention == 0 || c.Retention >= time.Hour, "notification.retention", c.Retention, "at least 1h, or 0 for no limit"))
}

func (c EmailConfig) validate() error {
	const key = "notification.email."

	_, err := mail.ParseAddress(c.From)

	return errors.Join(
		check.Value(c.Port >= 1 && c.Port <= 65535, key+"port", c.Port, "1 to 65535"),
		check.Value(c.TLS == startTLS || c.TLS == fullTLS || c.TLS == noTLS, key+"tls", c.TLS, "starttls, tls or none"),
		check.Encrypted(key+"user", c.TLS != noTLS, c.User != "", c.Host, "notification.email.tls starttls or tls"),
		check.That((c.User == "") == (c.Password == ""), key+"user: expected both notification.email.user and notification.email.password, or neither"),
		check.Value(err == nil, key+"from", c.From, "an address such as shop@example.com"),
	)
}

// Warn returns an error if the credentials in the URL of the webhook cross the network
// unencrypted. The secret that signs webhooks is never sent.
func (c Config) Warn() error {
	u, err := url.Parse(string(c.Webhook.URL))
	if err != nil {
		return nil //nolint:nilerr // Validate reports it
	}

	return errors.Join(
		check.Encrypted("notification.webhook.url", u.Scheme == "https", u.User != nil || u.RawQuery != "", u.Hostname(), "https://"),
		check.That(c.Webhook.URL != "" || c.Webhook.Secret == "",
			"notification.webhook.secret: is set, but notification.webhook.url is not, so the webhook channel is refused; set the URL"),
		check.That(c.Email.Host != "" || c.Email.User == "",
			"notification.email.user: is set, but notification.email.host is not, so no e-mail is sent; set the host"),
	)
}

func (c WebhookConfig) validate() error {
	if c.URL == "" {
		return nil
	}

	u, err := url.Parse(string(c.URL))
	secret, secretErr := c.secret()
	_, networksErr := c.networks()

	errs := []error{
		check.That(err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != "", "notification.webhook.url: is not a URL, expected https://host/path"),
		check.That(secretErr == nil && len(secret) >= 24 && len(secret) <= 64,
			"notification.webhook.secret: is not a secret, expected whsec_ and then 24 to 64 bytes in base64 (openssl rand -base64 32)"),
		networksErr,
	}

	for _, status := range c.FinalStatuses {
		errs = append(errs, check.Value(status >= 300 && status <= 599, "notification.webhook.final_statuses", status, "HTTP statuses from 300 to 599"))
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

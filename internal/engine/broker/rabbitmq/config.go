package rabbitmq

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/tlsconfig"
)

// Config configures the connection to RabbitMQ.
type Config struct {
	// URL starts with amqp://, or amqps:// for TLS. Defaults to
	// amqp://guest:guest@127.0.0.1:5672/.
	URL postgres.Secret `koanf:"url"`
	// Hosts lists additional nodes of the cluster as host:port. They are tried in order
	// if the one in URL does not respond. Empty by default.
	Hosts []string `koanf:"hosts"`
	// CAFile holds the certificates that verify the server of an amqps:// URL.
	// Defaults to the system's roots.
	CAFile string `koanf:"ca_file"`
	// CertFile and KeyFile hold the certificate that the service presents to the server
	// of an amqps:// URL. Empty by default.
	CertFile string `koanf:"cert_file"`
	KeyFile  string `koanf:"key_file"`
	// Exchange is the exchange that the service publishes to. Defaults to "millrace".
	Exchange string `koanf:"exchange"`
	// Declare creates the exchange and the queues if they do not exist. Defaults to true.
	Declare bool `koanf:"declare"`
	// Window is the maximum number of messages in hand per queue. Defaults to 512.
	Window int `koanf:"window"`
	// Lanes is the number of messages published concurrently. Defaults to 128.
	Lanes int `koanf:"lanes"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		URL: "amqp://guest:guest@127.0.0.1:5672/", Hosts: []string{}, Exchange: "millrace", Declare: true, Window: 512, Lanes: 128,
	}
}

// Warn returns an error if the password crosses the network unencrypted.
func (c Config) Warn() error {
	u, err := url.Parse(string(c.URL))
	if err != nil {
		return nil //nolint:nilerr // Validate reports it
	}

	_, secret := u.User.Password()
	hosts := []string{u.Hostname()}

	for _, address := range c.Hosts {
		if host, _, err := net.SplitHostPort(address); err == nil {
			hosts = append(hosts, host)
		}
	}

	for _, host := range hosts {
		if err := check.Encrypted("broker.rabbitmq.url", u.Scheme == "amqps", secret, host, "amqps://"); err != nil {
			return err
		}
	}

	return nil
}

// maxWindow is the largest prefetch count in AMQP.
const maxWindow = 1<<16 - 1

// Validate reports all mistakes, naming the keys.
func (c Config) Validate() error {
	// Do not include the parser's error: it quotes the password.
	u, err := url.Parse(string(c.URL))
	valid := err == nil && (u.Scheme == "amqp" || u.Scheme == "amqps") && u.Host != ""
	plain := valid && u.Scheme != "amqps"

	errs := []error{
		check.Positive("broker.rabbitmq.window", c.Window),
		check.That(c.Window <= maxWindow, fmt.Sprintf("broker.rabbitmq.window: is %d, expected at most %d", c.Window, maxWindow)),
		check.Positive("broker.rabbitmq.lanes", c.Lanes),
		check.That(valid, "broker.rabbitmq.url: not an AMQP address, expected amqp://host:5672/ with user:password@ before the host"),
		check.That(c.CAFile == "" || !plain, "broker.rabbitmq.ca_file: has no effect unless broker.rabbitmq.url starts with amqps://"),
		check.That(c.CertFile == "" || !plain, "broker.rabbitmq.cert_file: has no effect unless broker.rabbitmq.url starts with amqps://"),
		check.That((c.CertFile == "") == (c.KeyFile == ""), "broker.rabbitmq.cert_file and broker.rabbitmq.key_file: one is missing, expected both or neither"),
		check.That(c.Exchange != "", "broker.rabbitmq.exchange: must not be empty"),
	}

	for _, address := range c.Hosts {
		host, port, err := net.SplitHostPort(address)
		errs = append(errs, check.That(err == nil && host != "" && port != "",
			fmt.Sprintf("broker.rabbitmq.hosts: %q is not an address, expected for example rabbit2.example:5672", address)))
	}

	return errors.Join(errs...)
}

// tls returns the settings for a connection to host.
func (c Config) tls(host string) (*tls.Config, error) {
	security, err := tlsconfig.New(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("broker.rabbitmq.ca_file: %w", err)
	}

	security.ServerName = host

	if err := tlsconfig.Present(security, c.CertFile, c.KeyFile); err != nil {
		return nil, fmt.Errorf("broker.rabbitmq.cert_file: %w", err)
	}

	return security, nil
}

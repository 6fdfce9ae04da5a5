package payment

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Names of the gateways.
const (
	gatewaySimulated = "simulated"
	gatewayStripe    = "stripe"
)

// Config selects and configures the payment gateway.
type Config struct {
	// Gateway is simulated or stripe. Defaults to simulated.
	Gateway   string          `koanf:"gateway"`
	Simulated SimulatedConfig `koanf:"simulated"`
	Stripe    StripeConfig    `koanf:"stripe"`
}

// SimulatedConfig configures the simulated gateway. A rate is a fraction of requests,
// from 0 to 1.
type SimulatedConfig struct {
	// Ledger keeps a record of charges and refunds in Postgres. Without it, the
	// gateway computes its answer from the request and never fails, which is
	// meant for benchmarks. Defaults to true.
	Ledger bool `koanf:"ledger"`
	// Latency is the duration of each request. Defaults to 0s.
	Latency time.Duration `koanf:"latency"`
	// Timeout is the duration of a request that gets no answer. Defaults to 1s.
	Timeout time.Duration `koanf:"timeout"`
	// DeclineRate is the rate of charges that are declined. Defaults to 0.
	DeclineRate float64 `koanf:"decline_rate"`
	// TimeoutRate is the rate of charges that do nothing and get no answer.
	// Defaults to 0.
	TimeoutRate float64 `koanf:"timeout_rate"`
	// ErrorRate is the rate of charges that do nothing and get a 500. Defaults
	// to 0.
	ErrorRate float64 `koanf:"error_rate"`
	// ChargeThenTimeoutRate is the rate of charges that succeed and get no
	// answer. Defaults to 0.
	ChargeThenTimeoutRate float64 `koanf:"charge_then_timeout_rate"`
	// ChargeThenErrorRate is the rate of charges that succeed and get a 500.
	// Defaults to 0.
	ChargeThenErrorRate float64 `koanf:"charge_then_error_rate"`
	// Rules select the answer by order. The first rule that matches wins and takes
	// precedence over the rates. Defaults to none.
	Rules []Rule `koanf:"rules"`
}

// StripeConfig configures access to Stripe.
type StripeConfig struct {
	// SecretKey begins with sk_ or, if it is restricted, with rk_. Defaults to
	// none.
	SecretKey postgres.Secret `koanf:"secret_key"`
	// PaymentMethod is charged for each order. Passing the customer's own
	// method along with the order is up to the shop. Defaults to pm_card_visa,
	// which works in test mode.
	PaymentMethod string `koanf:"payment_method"`
	// URL is the address of the API. Defaults to https://api.stripe.com.
	URL string `koanf:"url"`
	// Timeout bounds one request; a charge makes two. Keep it below half of
	// consumer.handler_timeout. Defaults to 8s.
	Timeout time.Duration `koanf:"timeout"`
	// WebhookSecret verifies webhooks. During a rotation it holds several,
	// separated by commas. Without a secret webhooks are not served. Defaults to
	// none.
	WebhookSecret postgres.Secret `koanf:"webhook_secret"`
	// WebhookTolerance is the maximum age of a webhook's signature. Defaults to
	// 5m.
	WebhookTolerance time.Duration `koanf:"webhook_tolerance"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Gateway:   gatewaySimulated,
		Simulated: SimulatedConfig{Ledger: true, Timeout: time.Second, Rules: []Rule{}},
		Stripe: StripeConfig{
			PaymentMethod: "pm_card_visa", URL: "https://api.stripe.com",
			Timeout: 8 * time.Second, WebhookTolerance: 5 * time.Minute,
		},
	}
}

// NewGateway returns the gateway that cfg selects. It does not connect yet.
func NewGateway(cfg Config, pool *pgxpool.Pool) (Gateway, error) {
	switch cfg.Gateway {
	case gatewaySimulated:
		if !cfg.Simulated.Ledger {
			pool = nil
		}

		return &Simulated{cfg: cfg.Simulated, pool: pool}, nil
	case gatewayStripe:
		return newStripe(cfg.Stripe, pool), nil
	default:
		return nil, unknownGateway(cfg.Gateway)
	}
}

func unknownGateway(name string) error {
	return fmt.Errorf("payment.gateway: is %q, expected %s or %s", name, gatewaySimulated, gatewayStripe)
}

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	errs := []error{c.Simulated.validate(), c.Stripe.validateWebhook()}

	switch c.Gateway {
	case gatewaySimulated:
	case gatewayStripe:
		errs = append(errs, c.Stripe.validate())
	default:
		errs = append(errs, unknownGateway(c.Gateway))
	}

	return errors.Join(errs...)
}

func (c SimulatedConfig) validate() error {
	errs := []error{
		check.Value(c.Latency >= 0, "payment.simulated.latency", c.Latency, "0s or more"),
		check.Value(c.Timeout >= 0, "payment.simulated.timeout", c.Timeout, "0s or more"),
	}

	sum := 0.0

	for _, rate := range c.rates() {
		sum += rate.fraction
		inRange := rate.fraction >= 0 && rate.fraction <= 1 // false for NaN too
		errs = append(errs, check.Value(inRange, "payment.simulated."+string(rate.action)+"_rate", rate.fraction, "0 to 1"))
	}

	for _, r := range c.Rules {
		errs = append(errs, r.validate())
	}

	return errors.Join(append(errs,
		check.That(sum <= 1, fmt.Sprintf("payment.simulated: the rates add up to %v, expected at most 1", sum)),
		check.Value(c.Ledger || sum == 0 && len(c.Rules) == 0, "payment.simulated.ledger", c.Ledger,
			"true with rates or rules: without a record the gateway cannot ensure that it charges only once"),
	)...)
}

func (c StripeConfig) validate() error {
	const key = "payment.stripe."

	secret := string(c.SecretKey)
	return errors.Join(
		check.That(strings.HasPrefix(secret, "sk_") || strings.HasPrefix(secret, "rk_"), key+"secret_key: is not a secret key, expected one that begins with sk_ or rk_"),
		check.That(c.PaymentMethod != "", key+"payment_method: must not be empty"),
		check.That(!c.live() || !strings.HasPrefix(c.PaymentMethod, "pm_card_"),
			key+"payment_method: is "+c.PaymentMethod+", which is for tests, but payment.stripe.secret_key is a live key"),
		c.validateURL(),
		check.Value(c.Timeout > 0, key+"timeout", c.Timeout, "more than 0s"),
	)
}

func (c StripeConfig) validateURL() error {
	const key = "payment.stripe.url"

	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return errors.New(key + ": is not a URL, expected https://host")
	}

	return check.Encrypted(key, u.Scheme == "https", true, u.Hostname(), "https://host")
}

func (c StripeConfig) live() bool {
	return strings.Contains(string(c.SecretKey[:min(len(c.SecretKey), 8)]), "_live_")
}

func (c StripeConfig) validateWebhook() error {
	foreign := slices.ContainsFunc(c.webhookSecrets(), func(secret string) bool { return !strings.HasPrefix(secret, "whsec_") })

	return errors.Join(
		check.That(!foreign, "payment.stripe.webhook_secret: is not a webhook secret, expected one that begins with whsec_, or several separated by commas"),
		check.Value(c.WebhookTolerance > 0, "payment.stripe.webhook_tolerance", c.WebhookTolerance, "more than 0s"),
	)
}

func (c StripeConfig) webhookSecrets() []string {
	return strings.FieldsFunc(string(c.WebhookSecret), func(r rune) bool { return r == ',' || r == ' ' })
}

// Warn returns an error that lists settings that have no effect, and outcomes that nobody
// receives.
func (c Config) Warn() error {
	simulated := c.Gateway == gatewaySimulated

	return errors.Join(
		check.That(!simulated || c.Stripe.SecretKey == "",
			"payment.gateway: is simulated, although payment.stripe.secret_key is set, so no money moves; set payment.gateway to stripe, or remove the key"),
		check.That(simulated || c.Stripe.WebhookSecret != "",
			"payment.stripe.webhook_secret: is not set, so what Stripe reports later is not received; create a webhook endpoint at Stripe and set its signing secret"),
	)
}

package payment

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Names of the gateways.
const (
	gatewaySimulated = "simulated"
	gatewayStripe    = "stripe"
)

// Config says who takes the money.
type Config struct {
	// Gateway is simulated or stripe.
	Gateway   string          `koanf:"gateway"`
	Simulated SimulatedConfig `koanf:"simulated"`
	Stripe    StripeConfig    `koanf:"stripe"`
}

// SimulatedConfig says how the simulated gateway behaves. A rate is the part of
// the requests, 0 to 1, that meet with it.
type SimulatedConfig struct {
	// Ledger lets it keep a record in Postgres. Without one it answers from the
	// request alone and nothing can go wrong: for benchmarks.
	Ledger bool `koanf:"ledger"`
	// Latency is how long each answer takes.
	Latency time.Duration `koanf:"latency"`
	// Timeout is how long a request takes that gets no answer.
	Timeout     time.Duration `koanf:"timeout"`
	DeclineRate float64       `koanf:"decline_rate"`
	// TimeoutRate and ErrorRate do nothing and then give no answer, or a 500.
	TimeoutRate float64 `koanf:"timeout_rate"`
	ErrorRate   float64 `koanf:"error_rate"`
	// ChargeThenTimeoutRate and ChargeThenErrorRate do so after the charge.
	ChargeThenTimeoutRate float64 `koanf:"charge_then_timeout_rate"`
	ChargeThenErrorRate   float64 `koanf:"charge_then_error_rate"`
	// Rules say it order by order, before the rates: "declined-*=decline",
	// "slow-1=charge_then_timeout:3". See parseRule.
	Rules []string `koanf:"rules"`
}

// StripeConfig says how to reach Stripe.
type StripeConfig struct {
	// SecretKey begins with sk_ or, for a restricted key, rk_.
	SecretKey postgres.Secret `koanf:"secret_key"`
	// PaymentMethod is charged for every order. How a shop passes the method of
	// the customer along with the order is not decided here.
	PaymentMethod string `koanf:"payment_method"`
	// URL is where the API is.
	URL string `koanf:"url"`
	// Timeout bounds one request; a charge takes two. Keep it below half of
	// consumer.handler_timeout.
	Timeout time.Duration `koanf:"timeout"`
	// WebhookSecret verifies webhooks; several, separated by commas, while it is
	// rotated. Without one webhooks are not served.
	WebhookSecret postgres.Secret `koanf:"webhook_secret"`
	// WebhookTolerance is how old the signature of a webhook may be.
	WebhookTolerance time.Duration `koanf:"webhook_tolerance"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Gateway:   gatewaySimulated,
		Simulated: SimulatedConfig{Ledger: true, Timeout: time.Second, Rules: []string{}},
		Stripe: StripeConfig{
			PaymentMethod: "pm_card_visa", URL: "https://api.stripe.com",
			Timeout: 8 * time.Second, WebhookTolerance: 5 * time.Minute,
		},
	}
}

// NewGateway returns the gateway that cfg names. It reaches out to nobody yet.
func NewGateway(cfg Config, pool *pgxpool.Pool) (Gateway, error) {
	switch cfg.Gateway {
	case gatewaySimulated:
		return newSimulated(cfg.Simulated, pool)
	case gatewayStripe:
		return newStripe(cfg.Stripe, pool), nil
	default:
		return nil, fmt.Errorf("payment.gateway: is %q, expected %s or %s", cfg.Gateway, gatewaySimulated, gatewayStripe)
	}
}

// Validate reports every mistake, naming the key.
func (c Config) Validate() error {
	errs := []error{c.Simulated.validate(), c.Stripe.validateWebhook()}

	switch c.Gateway {
	case gatewaySimulated:
	case gatewayStripe:
		errs = append(errs, c.Stripe.validate())
	default:
		errs = append(errs, fmt.Errorf("payment.gateway: is %q, expected %s or %s", c.Gateway, gatewaySimulated, gatewayStripe))
	}

	return errors.Join(errs...)
}

func (c SimulatedConfig) validate() error {
	var errs []error

	if c.Latency < 0 {
		errs = append(errs, fmt.Errorf("payment.simulated.latency: is %s, expected 0s or more", c.Latency))
	}

	if c.Timeout < 0 {
		errs = append(errs, fmt.Errorf("payment.simulated.timeout: is %s, expected 0s or more", c.Timeout))
	}

	sum := 0.0

	for _, rate := range c.rates() {
		sum += rate.part

		if !(rate.part >= 0 && rate.part <= 1) { // so that NaN is refused too
			errs = append(errs, fmt.Errorf("payment.simulated.%s_rate: is %v, expected 0 to 1", rate.action, rate.part))
		}
	}

	if sum > 1 {
		errs = append(errs, fmt.Errorf("payment.simulated: its rates make %v together, expected at most 1", sum))
	}

	for _, text := range c.Rules {
		if _, err := parseRule(text); err != nil {
			errs = append(errs, err)
		}
	}

	if !c.Ledger && (sum > 0 || len(c.Rules) > 0) {
		errs = append(errs, errors.New("payment.simulated.ledger: is false, expected true with rates or rules: without a record it cannot charge once"))
	}

	return errors.Join(errs...)
}

func (c StripeConfig) validate() error {
	var errs []error

	if key := string(c.SecretKey); !strings.HasPrefix(key, "sk_") && !strings.HasPrefix(key, "rk_") {
		errs = append(errs, errors.New("payment.stripe.secret_key: is no secret key, expected one that begins with sk_ or rk_"))
	}

	switch {
	case c.PaymentMethod == "":
		errs = append(errs, errors.New("payment.stripe.payment_method: must not be empty"))
	case c.live() && strings.HasPrefix(c.PaymentMethod, "pm_card_"):
		errs = append(errs, fmt.Errorf("payment.stripe.payment_method: is %s, which is for tests, but payment.stripe.secret_key is a live one", c.PaymentMethod))
	}

	u, err := url.Parse(c.URL)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
		errs = append(errs, errors.New("payment.stripe.url: is no address, expected https://host"))
	} else if u.Scheme == "http" && c.live() {
		errs = append(errs, errors.New("payment.stripe.url: would send a live key in the clear, expected https://host"))
	}

	if c.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("payment.stripe.timeout: is %s, expected more than 0s", c.Timeout))
	}

	return errors.Join(errs...)
}

func (c StripeConfig) live() bool {
	return strings.Contains(string(c.SecretKey[:min(len(c.SecretKey), 8)]), "_live_")
}

func (c StripeConfig) validateWebhook() error {
	var errs []error

	for _, secret := range c.webhookSecrets() {
		if !strings.HasPrefix(secret, "whsec_") {
			errs = append(errs, errors.New("payment.stripe.webhook_secret: is no secret, expected one that begins with whsec_, or several, separated by commas"))

			break
		}
	}

	if c.WebhookTolerance <= 0 {
		errs = append(errs, fmt.Errorf("payment.stripe.webhook_tolerance: is %s, expected more than 0s", c.WebhookTolerance))
	}

	return errors.Join(errs...)
}

func (c StripeConfig) webhookSecrets() []string {
	return strings.FieldsFunc(string(c.WebhookSecret), func(r rune) bool { return r == ',' || r == ' ' })
}

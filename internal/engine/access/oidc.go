package access

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/tlsconfig"
)

// OIDC configures an OpenID Connect provider whose signed tokens (JWTs) are accepted.
type OIDC struct {
	// Issuer is the provider's URL, exactly as in its tokens. Defaults to none.
	Issuer string `koanf:"issuer"`
	// Audience is the client id or API that tokens must be issued for.
	Audience string `koanf:"audience"`
	// CAFile verifies the provider. Defaults to the system's certificates.
	CAFile string `koanf:"ca_file"`
	// NameClaim is the claim whose value identifies the actor of an action. Defaults to
	// sub, the only claim whose value a provider never reassigns.
	NameClaim string `koanf:"name_claim"`
	// RoleClaim is the claim whose value, a string or a list of strings, Roles maps to
	// roles. A name with dots may be a path, such as realm_access.roles. Defaults to
	// roles.
	RoleClaim string `koanf:"role_claim"`
	// Roles maps values of RoleClaim to roles. If several match, the highest role
	// applies.
	Roles []Mapping `koanf:"roles"`
	// ClientID and ClientSecret are the service's own at the provider, for people who log
	// in to the console there. Without a client id, they paste a token. A public client has
	// no secret.
	ClientID     string          `koanf:"client_id"`
	ClientSecret postgres.Secret `koanf:"client_secret"`
}

// Mapping gives Role to everybody whose role claim contains Value.
type Mapping struct {
	Value string `koanf:"value"`
	Role  Role   `koanf:"role"`
}

// DefaultOIDC returns the defaults.
func DefaultOIDC() OIDC { return OIDC{NameClaim: "sub", RoleClaim: "roles", Roles: []Mapping{}} }

// Validate reports all mistakes, naming the keys.
func (c OIDC) Validate() error {
	if c.Issuer == "" {
		return check.That(c.Audience == "" && len(c.Roles) == 0 && c.ClientID == "", "http.oidc.issuer: is missing, expected the URL of the provider, because other keys of http.oidc are set")
	}

	u, err := url.Parse(c.Issuer)
	errs := []error{
		check.Value(err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http" && check.Loopback(u.Hostname())),
			"http.oidc.issuer", c.Issuer, "https://host, because anyone who can replace the provider's keys can do anything"),
		check.That(c.Audience != "", "http.oidc.audience: is missing, expected the client id or API that tokens are issued for; without it, tokens for any other application would be accepted"),
		check.That(c.NameClaim != "", "http.oidc.name_claim: is missing, expected a claim such as sub"),
		check.That(c.RoleClaim != "", "http.oidc.role_claim: is missing, expected a claim such as roles"),
		check.That(c.ClientSecret == "" || c.ClientID != "", "http.oidc.client_id: is missing, expected the client that http.oidc.client_secret belongs to"),
		check.That(len(c.Roles) > 0, "http.oidc.roles: is empty, expected at least one {value: ..., role: viewer, operator or admin}; without it, nobody has a role"),
	}

	for i, m := range c.Roles {
		errs = append(errs,
			check.That(m.Value != "", fmt.Sprintf("http.oidc.roles[%d].value: is missing, expected a value of the claim %s", i, c.RoleClaim)),
			check.Value(m.Role.rank() > 0, fmt.Sprintf("http.oidc.roles[%d].role", i), string(m.Role), "viewer, operator or admin"))
	}

	return errors.Join(errs...)
}

// Timing of requests to a provider.
const (
	providerTimeout = 5 * time.Second
	providerPause   = 5 * time.Second // after a failure
)

// provider verifies tokens from an OpenID Connect provider. It fetches the provider's
// description and keys only when they are needed, so the service can start without the
// provider.
type provider struct {
	cfg    OIDC
	client *http.Client
	logger *slog.Logger

	mu       sync.Mutex
	found    *oidc.Provider // nil until the provider has answered
	failure  error
	failedAt time.Time
}

func newProvider(cfg OIDC, logger *slog.Logger) (*provider, error) {
	settings, err := tlsconfig.New(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("http.oidc.ca_file: %w", err)
	}

	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // of this type
	transport.TLSClientConfig = settings

	return &provider{cfg: cfg, client: &http.Client{Timeout: providerTimeout, Transport: transport}, logger: logger}, nil
}

// discovered returns the provider. It fetches its description unless an earlier call has
// done so.
func (p *provider) discovered() (*oidc.Provider, error) {
	p.mu.Lock()
	defer p.mu.Unlock()

	if p.found != nil || p.failure != nil && time.Since(p.failedAt) < providerPause {
		return p.found, p.failure
	}

	// The provider keeps this context to fetch keys long after this request.
	found, err := oidc.NewProvider(oidc.ClientContext(context.Background(), p.client), p.cfg.Issuer)
	if err != nil {
		p.failure, p.failedAt = fmt.Errorf("contacting the OpenID Connect provider %s: %w", p.cfg.Issuer, err), time.Now()
		p.logger.Warn("the OpenID Connect provider cannot be used", slog.Any("error", p.failure))

		return nil, p.failure
	}

	p.found, p.failure = found, nil

	return p.found, nil
}

// at returns the service's own client at the provider.
func (p *provider) at(redirect string) (*oauth2.Config, *oidc.Provider, error) {
	found, err := p.discovered()
	if err != nil {
		return nil, nil, err
	}

	return &oauth2.Config{
		ClientID: p.cfg.ClientID, ClientSecret: string(p.cfg.ClientSecret), Endpoint: found.Endpoint(), RedirectURL: redirect,
		Scopes: []string{oidc.ScopeOpenID, "profile", "email"},
	}, found, nil
}

// keysMissing is the prefix of go-oidc's error for keys that the provider did not return.
// The error cannot be unwrapped.
const keysMissing = "failed to verify signature: fetching keys "

// verify returns the identity behind a token. Somebody without a mapped role is
// authenticated, but has no permissions.
func (p *provider) verify(ctx context.Context, bearer string) (Identity, error) {
	found, err := p.discovered()
	if err != nil {
		return Identity{}, err
	}

	token, err := found.Verifier(&oidc.Config{ClientID: p.cfg.Audience}).Verify(ctx, bearer)
	if err != nil && strings.HasPrefix(err.Error(), keysMissing) {
		return Identity{}, fmt.Errorf("contacting the OpenID Connect provider %s: %w", p.cfg.Issuer, err)
	}

	if _, expired := errors.AsType[*oidc.TokenExpiredError](err); expired {
		return Identity{}, &RefusedError{Expired, err.Error()}
	}

	if err != nil {
		return Identity{}, &RefusedError{Invalid, err.Error()}
	}

	var claims map[string]any
	if err := token.Claims(&claims); err != nil {
		return Identity{}, &RefusedError{Invalid, err.Error()}
	}

	who, _ := claims[p.cfg.NameClaim].(string)
	if err := checkName(who, p.cfg.NameClaim, claims); err != nil {
		return Identity{}, err
	}

	return Identity{Who: who, Role: p.role(claims)}, nil
}

// checkName refuses a name that could be mistaken for somebody else's in the record of
// actions.
func checkName(who, claim string, claims map[string]any) error {
	switch verified := claims["email_verified"]; {
	case who == "" || event.Storable(who) != nil || len(who) > maxName:
		return &RefusedError{Invalid, fmt.Sprintf("its claim %s is not a name of 1 to %d bytes", claim, maxName)}
	case claim == "email" && verified != true && verified != "true":
		return &RefusedError{Invalid, "its e-mail address has not been verified by the provider"}
	case strings.HasPrefix(who, actorPrefix) || who == activity.Service:
		return &RefusedError{Invalid, fmt.Sprintf("its name %q is reserved", who)}
	default:
		return nil
	}
}

// maxName is the maximum length of a person's name, in bytes.
const maxName = 200

// role returns the highest role that the claims grant.
func (p *provider) role(claims map[string]any) (role Role) {
	values := map[string]bool{}

	switch claim := claimAt(claims, p.cfg.RoleClaim).(type) {
	case string:
		values[claim] = true
	case []any:
		for _, value := range claim {
			if text, ok := value.(string); ok {
				values[text] = true
			}
		}
	}

	for _, m := range p.cfg.Roles {
		if values[m.Value] && m.Role.rank() > role.rank() {
			role = m.Role
		}
	}

	return role
}

// claimAt returns the claim called name, or else the claim at the dotted path name.
func claimAt(claims map[string]any, name string) any {
	if value, ok := claims[name]; ok {
		return value
	}

	var value any = claims

	for part := range strings.SplitSeq(name, ".") {
		object, _ := value.(map[string]any)
		value = object[part]
	}

	return value
}

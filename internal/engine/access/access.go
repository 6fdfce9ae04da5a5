// Package access says who may do what: roles, API tokens, and the tokens of an OpenID
// Connect provider.
package access

import (
	"context"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Role says what somebody may do. The zero value permits nothing.
type Role string

// Roles. Each includes the permissions of those before it.
const (
	Viewer   Role = "viewer"   // reads, without personal data
	Operator Role = "operator" // reads everything and acts on messages and consumers
	Admin    Role = "admin"    // erases personal data
)

// Roles lists all roles, lowest first.
var Roles = []Role{Viewer, Operator, Admin}

// Allows reports whether role r is sufficient for what requires the role needs.
func (r Role) Allows(needs Role) bool {
	return r.rank() > 0 && needs.rank() > 0 && r.rank() >= needs.rank()
}

func (r Role) rank() int {
	for i, role := range Roles {
		if r == role {
			return i + 1
		}
	}

	return 0
}

// Identity is somebody who has been authenticated.
type Identity struct {
	// Who is the name that actions are recorded under.
	Who  string
	Role Role
}

// Credential is a kind of bearer token.
type Credential string

// Kinds of credentials.
const (
	APIToken    Credential = "api_token"
	SignedToken Credential = "signed_token" // from an OpenID Connect provider
	Other       Credential = "other"
)

// CredentialOf returns the kind of a bearer token, judging by its form.
func CredentialOf(bearer string) Credential {
	switch {
	case strings.HasPrefix(bearer, tokenPrefix):
		return APIToken
	case strings.Count(bearer, ".") == 2:
		return SignedToken
	default:
		return Other
	}
}

// Cause says why a credential is not accepted, in one word for metrics.
type Cause string

// Causes.
const (
	Unknown Cause = "unknown" // it was not issued here
	Revoked Cause = "revoked"
	Expired Cause = "expired"
	Invalid Cause = "invalid" // its signature, issuer, audience or name is not accepted
)

// RefusedError reports a credential that is not accepted. The reason is for the log,
// not for the sender.
type RefusedError struct {
	Cause  Cause
	Reason string
}

func (e *RefusedError) Error() string { return e.Reason }

// Verifier checks credentials. Whoever logs in at the provider gets a token from it, which
// the Verifier checks like any other.
type Verifier struct {
	pool     *pgxpool.Pool
	provider *provider // nil if there is none
}

// NewVerifier returns a verifier of API tokens and, if cfg names a provider, of that
// provider's tokens. It does not yet contact the provider.
func NewVerifier(cfg OIDC, pool *pgxpool.Pool, logger *slog.Logger) (*Verifier, error) {
	v := &Verifier{pool: pool}
	if cfg.Issuer == "" {
		return v, nil
	}

	provider, err := newProvider(cfg, logger)
	v.provider = provider

	return v, err
}

// Verify returns the identity behind a bearer token. It returns a RefusedError if the
// credential is not accepted. Other errors mean that it could not be checked.
func (v *Verifier) Verify(ctx context.Context, bearer string) (Identity, error) {
	switch kind := CredentialOf(bearer); {
	case kind == APIToken:
		return verifyToken(ctx, v.pool, bearer)
	case v.provider == nil:
		return Identity{}, &RefusedError{Unknown, "it is not an API token, and http.oidc has no provider"}
	case kind == Other:
		return Identity{}, &RefusedError{Unknown, "it is neither an API token nor a signed token (JWT)"}
	default:
		return v.provider.verify(ctx, bearer)
	}
}

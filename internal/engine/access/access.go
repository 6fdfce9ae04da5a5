// Package access says who may do what: roles, API tokens, and the tokens of an OpenID
// Connect provider.
package access

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Role says what somebody may do. The zero value may do nothing.
type Role string

// Roles. Each may do everything that the roles before it may do.
const (
	Viewer   Role = "viewer"   // reads, without personal data
	Operator Role = "operator" // reads everything and acts on messages and consumers
	Admin    Role = "admin"    // erases personal data
)

// Roles lists all roles, the lowest first.
var Roles = []Role{Viewer, Operator, Admin}

// Allows reports whether somebody with role r may do what requires the role needs.
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

// RefusedError reports a credential that is not accepted. The reason is for the log,
// not for the sender.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return e.Reason }

// Refused reports whether err is about the credential. Other errors mean that the
// credential could not be checked.
func Refused(err error) bool {
	_, refused := errors.AsType[*RefusedError](err)

	return refused
}

// Verifier checks credentials. An interactive login would create a session, which the
// Verifier would check like a token.
type Verifier struct {
	pool     *pgxpool.Pool
	provider *provider // nil if there is none
}

// NewVerifier returns a verifier of API tokens and, if cfg names a provider, of that
// provider's tokens. It does not contact the provider yet.
func NewVerifier(cfg OIDC, pool *pgxpool.Pool, logger *slog.Logger) (*Verifier, error) {
	v := &Verifier{pool: pool}
	if cfg.Issuer == "" {
		return v, nil
	}

	provider, err := newProvider(cfg, logger)
	v.provider = provider

	return v, err
}

// Verify returns the identity behind a bearer token; see Refused for errors.
func (v *Verifier) Verify(ctx context.Context, bearer string) (Identity, error) {
	switch {
	case strings.HasPrefix(bearer, tokenPrefix):
		return verifyToken(ctx, v.pool, bearer)
	case v.provider != nil:
		return v.provider.verify(ctx, bearer)
	default:
		return Identity{}, &RefusedError{"it is not an API token, and http.oidc has no provider"}
	}
}

package access

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// tokenPrefix distinguishes API tokens from a provider's, and lets scanners for leaked
// secrets find them.
const tokenPrefix = "mrt_"

// tokenBytes is the number of random bytes in a token. Nobody can guess 256 bits, so a
// plain hash is enough even if the table is stolen. Slow hashes are meant for passwords,
// which can be guessed; one would slow down every request.
const tokenBytes = 32

// actorPrefix distinguishes a token's name from a person's in the record of actions.
const actorPrefix = "token:"

// Limits on tokens.
const (
	MaxTokenName = 80
	maxTokenLife = 10 * 365 * 24 * time.Hour
)

// Token describes an API token, without its secret.
type Token struct {
	Name      string    `json:"name"`
	Role      Role      `json:"role"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
	ExpiresAt time.Time `json:"expires_at"`
	// UsedAt is when the token was last accepted, to the minute.
	UsedAt    *time.Time `json:"used_at,omitempty"`
	RevokedAt *time.Time `json:"revoked_at,omitempty"`
	RevokedBy string     `json:"revoked_by,omitempty"`
}

// State returns valid, expired or revoked.
func (t Token) State() string {
	switch {
	case t.RevokedAt != nil:
		return "revoked"
	case time.Now().After(t.ExpiresAt):
		return "expired"
	default:
		return "valid"
	}
}

// CreateToken stores a token that is valid for the given time, and returns its secret,
// which cannot be retrieved again. A name can be used only once, because actions are
// recorded under it.
func CreateToken(ctx context.Context, db postgres.Querier, name string, role Role, life time.Duration, by string) (secret string, err error) {
	if role.rank() == 0 {
		return "", event.Errorf(event.Unknown, "unknown role %s, expected viewer, operator or admin", role)
	}

	if by == "" {
		return "", activity.ErrNoActor
	}

	if name == "" || len(name) > MaxTokenName || name != strings.TrimSpace(name) {
		return "", event.Errorf(event.Invalid, "name: is %q, expected 1 to %d bytes without spaces around them", name, MaxTokenName)
	}

	if life < time.Minute || life > maxTokenLife {
		return "", event.Errorf(event.Invalid, "for: is %s, expected 1m to %s", life, maxTokenLife)
	}

	random := make([]byte, tokenBytes)
	_, _ = rand.Read(random) // never fails

	secret = tokenPrefix + base64.RawURLEncoding.EncodeToString(random)

	_, err = postgres.Collect(ctx, db, pgx.RowTo[string], `
		INSERT INTO api_tokens (name, role, digest, created_by, expires_at) VALUES ($1, $2, $3, $4, now() + $5::interval)
		RETURNING name`, name, role, digest(secret), by, life)
	if postgres.IsDuplicate(err) {
		return "", event.Errorf(event.Conflict, "token %s already exists; names cannot be reused, because actions are recorded under them", name)
	}

	if err != nil {
		return "", fmt.Errorf("creating a token: %w", err)
	}

	return secret, nil
}

func digest(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))

	return sum[:]
}

// ListTokens returns all tokens, sorted by name.
func ListTokens(ctx context.Context, db postgres.Querier) ([]Token, error) {
	list, err := postgres.Collect(ctx, db, pgx.RowToStructByPos[Token], `
		SELECT name, role, created_at, created_by, expires_at, used_at, revoked_at, COALESCE(revoked_by, '') FROM api_tokens ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("listing tokens: %w", err)
	}

	return list, nil
}

// RevokeToken invalidates a token. It returns false if the token was already revoked.
func RevokeToken(ctx context.Context, db postgres.Querier, name, by string) (changed bool, err error) {
	if by == "" {
		return false, activity.ErrNoActor
	}

	found, err := postgres.Collect(ctx, db, pgx.RowTo[bool], `
		WITH revoked AS (
			UPDATE api_tokens SET revoked_at = now(), revoked_by = $2 WHERE name = $1 AND revoked_at IS NULL RETURNING name
		)
		SELECT EXISTS (SELECT FROM revoked) FROM api_tokens WHERE name = $1`, name, by)
	if err != nil {
		return false, fmt.Errorf("revoking a token: %w", err)
	}

	if len(found) == 0 {
		return false, event.Missing("token", name)
	}

	return found[0], nil
}

// verifyToken returns the identity behind an API token. It records the token's use at
// most once a minute.
func verifyToken(ctx context.Context, db postgres.Querier, secret string) (Identity, error) {
	type row struct {
		Name             string
		Role             Role
		Revoked, Expired bool
	}

	found, err := postgres.Collect(ctx, db, pgx.RowToStructByPos[row], `
		WITH used AS (
			UPDATE api_tokens SET used_at = now()
			WHERE digest = $1 AND revoked_at IS NULL AND expires_at > now() AND (used_at IS NULL OR used_at < now() - interval '1 minute')
		)
		SELECT name, role, revoked_at IS NOT NULL, expires_at <= now() FROM api_tokens WHERE digest = $1`, digest(secret))

	switch {
	case err != nil:
		return Identity{}, fmt.Errorf("checking a token: %w", err)
	case len(found) == 0:
		return Identity{}, &RefusedError{Unknown, "the token is unknown"}
	case found[0].Revoked:
		return Identity{}, &RefusedError{Revoked, "the token " + found[0].Name + " is revoked"}
	case found[0].Expired:
		return Identity{}, &RefusedError{Expired, "the token " + found[0].Name + " has expired"}
	default:
		return Identity{Who: actorPrefix + found[0].Name, Role: found[0].Role}, nil
	}
}

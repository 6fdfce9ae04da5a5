// Package money represents amounts as decimals with an ISO 4217 currency, never
// as floats.
package money

import (
	"fmt"
	"strings"

	"github.com/shopspring/decimal"
	"golang.org/x/text/currency"
)

// DefaultCurrency is the currency of messages without one.
const DefaultCurrency = "USD"

// Limits of an amount: what numeric(24,6) in the schema holds.
const (
	maxText          = 40
	maxIntegerDigits = 18
)

// Amount is a decimal number. It is read from a JSON number or string and
// written as a number.
type Amount struct{ decimal.Decimal }

// Parse reads a decimal such as "99.99".
func Parse(text string) (Amount, error) {
	if len(text) > maxText {
		return Amount{}, fmt.Errorf("has %d characters, expected a decimal number of at most %d", len(text), maxText)
	}

	d, err := decimal.NewFromString(text)
	if err != nil {
		return Amount{}, fmt.Errorf("is %q, expected a decimal number such as 99.99", text)
	}

	// Check the exponent before computing anything: 1e1000000000 is short as text
	// but does not fit into memory.
	if exponent := d.Exponent(); exponent > maxIntegerDigits || exponent < -maxText {
		return Amount{}, fmt.Errorf("is %s, out of range", text)
	}

	return Amount{d}, nil
}

// MustParse is Parse for constants; it panics on an error.
func MustParse(text string) Amount { return Amount{decimal.RequireFromString(text)} }

// UnmarshalJSON reads a number or a string that contains one.
func (a *Amount) UnmarshalJSON(data []byte) error {
	parsed, err := Parse(strings.Trim(string(data), `"`))
	if err != nil {
		return err
	}

	*a = parsed

	return nil
}

// MarshalJSON writes a number.
func (a Amount) MarshalJSON() ([]byte, error) { return []byte(a.String()), nil }

// Equal reports whether both are the same number, regardless of notation.
func (a Amount) Equal(b Amount) bool { return a.Decimal.Equal(b.Decimal) }

// Check validates an amount in a currency: the currency must exist, and the
// amount must not be missing (nil), negative, too large or finer than the
// currency's smallest unit. Errors begin with the path in field.
func Check(field string, amount *Amount, code string) error {
	if amount == nil {
		return fmt.Errorf("%s: is missing, expected a decimal number", field)
	}

	unit, err := currency.ParseISO(code)
	if err != nil || unit.String() != code {
		return fmt.Errorf("currency: is %q, expected an ISO 4217 code such as %s", code, DefaultCurrency)
	}

	scale, _ := currency.Standard.Rounding(unit)

	switch {
	case amount.IsNegative():
		return fmt.Errorf("%s: is %s, expected 0 or more", field, amount)
	case amount.GreaterThanOrEqual(decimal.New(1, maxIntegerDigits)):
		return fmt.Errorf("%s: is %s, expected less than 10^%d", field, amount, maxIntegerDigits)
	case !amount.Equal(Amount{amount.Truncate(int32(scale))}): //nolint:gosec // 0 to 4
		return fmt.Errorf("%s: is %s, expected at most %d decimal places in %s", field, amount, scale, code)
	}

	return nil
}

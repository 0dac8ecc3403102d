package verdict

import (
	"net/http"
	"slices"

	"github.com/ai-identity/ai-identity/identity"
	"github.com/ai-identity/ai-identity/policy"
	"github.com/ai-identity/ai-identity/provider"
)

// models returns the response with the models that the caller may use. Those are the models
// that agent and key list by name, and those that a provider has by name and the lists
// allow. A pattern is not listed, since only the provider knows its models. A model that a
// pattern allows is found when it is requested by its name.
func (o *Org) models(c identity.Caller, r *Request, asked string) ([]byte, *provider.Error) {
	may := func(id string) bool { return mayUse(c, id) }
	names := append(slices.Clone(c.Agent.AllowedModels), c.Key.AllowedModels...)
	one := r.Endpoint.Operation == opModel
	if one {
		names = append(names, asked)
	}
	models := o.Providers.Models(may, names...)
	var b []byte
	var err error
	if one {
		i := slices.IndexFunc(models, func(m provider.Model) bool { return m.ID == asked })
		if i < 0 {
			return nil, Refuse(http.StatusNotFound, "model_not_found", "This model does not exist, or this key may not use it.")
		}
		b, err = r.Format.EncodeModel(models[i])
	} else {
		b, err = r.Format.EncodeModels(models)
	}
	if err != nil {
		return nil, Unavailable("internal_error", "The list of models could not be written.")
	}
	return b, nil
}

// mayUse reports whether the caller's agent and key list the model. It applies the rule of
// policy's baseline to lists of models.
func mayUse(c identity.Caller, model string) bool {
	listed := func(patterns []string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool { return policy.Matches(p, model) })
	}
	return listed(c.Agent.AllowedModels) && (len(c.Key.AllowedModels) == 0 || listed(c.Key.AllowedModels))
}

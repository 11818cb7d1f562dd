"""Deliberate faults, each of which some test must notice: ``mutate.py`` applies them one by one."""

from typing import NamedTuple

__all__ = ["FAULTS", "Fault"]


class Fault(NamedTuple):
    """One place of a file, what stands there, what is put there, and the tests that should notice."""

    file: str
    before: str
    after: str
    tests: str
    """Parted by blanks: ``NAME`` for the file ``tests/test_NAME.py``, ``NAME::TEST`` for one test of it."""


_FAULTS = {
    "wae_lightning/kernels.py": [
        ("squared * (-0.5 / bandwidth**2)", "squared * (-1.0 / bandwidth**2)", "kernels"),
        ("column].median()", "column].mean()", "kernels"),
        ("median().sqrt().clamp", "median().clamp", "kernels"),
        ("torch.cat([x, y])).detach()", "torch.cat([x, y]))", "kernels"),
        ("value=-c)", "value=c)", "kernels"),
        ("tuple(scale * self.c", "tuple(scale / self.c", "kernels"),
        ("if self._c_from_prior:", "if self.c is None:", "kernels"),
        ("return -distances(squared)", "return distances(squared)", "kernels"),
        ("distances(squared) / bandwidth)", "distances(squared) / bandwidth**2)", "kernels"),
        ("alpha=-2).clamp_min(0)", "alpha=-2)", "kernels"),
        ("center = y.detach().mean(0)", "center = 0 * y[0]", "kernels"),
    ],
    "wae_lightning/priors.py": [
        ("return 2.0 * self.latent_dim * self.scale**2\n", "return 2.0 * self.latent_dim * self.scale\n", "priors"),
        ("self.scale**2 / 3.0", "self.scale**2", "priors"),
        ("return 2.0 * self.scale**2", "return self.scale**2", "priors"),
        ("(in_full_precision(z) / self.scale).square()", "in_full_precision(z).square()", "priors"),
        ("math.log(self.scale) + 0.5", "0.5", "priors"),
        ("self.scale * F.normalize(in_full", "F.normalize(in_full", "priors"),
        ("self.scale * torch.tanh(", "torch.tanh(", "priors"),
        ("self.scale * self._sample_unscaled(", "self._sample_unscaled(", "priors"),
    ],
    "wae_lightning/noise.py": [
        ("clamp_(-2 * self.std, 2 * self.std)", "clamp_(-self.std, self.std)", "noise"),
        ("mul_(math.sqrt(2) * self.std)", "mul_(self.std)", "noise"),
        ("return x + noise", "return noise", "noise"),
        ("math.sqrt(1 - self.std**2) * features", "(1 - self.std) * features", "noise"),
        ("self.std * torch.randn_like(features)", "self.std**2 * torch.randn_like(features)", "noise"),
        ("self.initial_std**2 * log_variance", "self.initial_std * log_variance", "noise"),
        ("self.variance(features).sqrt() *", "self.variance(features) *", "noise"),
        ("return features + (matrix @", "return (matrix @", "noise"),
    ],
    "wae_lightning/samplers.py": [
        ("(roots[chosen] @ noise)", "(roots[chosen].mT @ noise)", "samplers"),
        (
            "torch.multinomial(weights,",
            "torch.multinomial(torch.ones_like(weights),",
            "samplers::test_clusters_are_drawn_by_their_weights",
        ),
        ("random_state=seed", "random_state=0", "samplers"),
        ("mixture.covariances_)", "mixture.precisions_)", "samplers"),
    ],
    "wae_lightning/schedules.py": [
        ("if epoch >= start", "if epoch > start", "schedules"),
        ("1 / math.prod(passed)", "1 / max(passed, default=1)", "schedules"),
        ("pct_start = 2 / total_steps", "pct_start = 0.5", "schedules"),
    ],
    "wae_lightning/costs.py": [
        ("chamfer_distance(target, reconstruction, self.squared)", "chamfer_distance(target, reconstruction)", "costs"),
        ("from_a.mean(1) + from_b.mean(1)", "from_a.mean(1) + from_a.mean(1)", "costs"),
        ("(b - _rows(a, to_a))", "(b - _rows(a, to_a).detach())", "costs"),
        (".sqrt().mean(1)", ".mean(1)", "costs"),
        ("+ 1e-8).sqrt()", ").sqrt()", "costs"),
        ("self.scale * self._unscaled(in_full", "self._unscaled(in_full", "costs"),
        ("self.scale * self._unscaled(target", "self._unscaled(target", "costs"),
        ("reconstruction, self.blur, self.iterations)", "reconstruction)", "costs"),
        ("min(2 * i / iterations, 1.0)", "min(i / 4 / iterations, 1.0)", "costs"),
        ("linear_sum_assignment(matrix)", "linear_sum_assignment(matrix**2)", "costs"),
    ],
    "wae_lightning/neighbors.py": [
        ("for axis in (1, 2):", "for axis in (1,):", "costs"),
        ("- q.unsqueeze(1)).square()", "- q.unsqueeze(1)).abs()", "costs"),
        ("if not torch.allclose(", "if torch.allclose(", "costs"),
    ],
    "wae_lightning/image_parts.py": [
        ("(height - high, height), (0, wide)", "(high, height), (0, wide)", "half_images"),
        ("(left, width - right, top,", "(width - right, left, top,", "half_images"),
        ('"right": (*all_rows, 0, width - wide)', '"right": (*all_rows, wide, width)', "half_images"),
    ],
    "wae_lightning/penalties/mmd.py": [
        ("weights[n:, n:] = 1 / (m * (m - 1))", "weights[n:, n:] = 1 / (m * m)", "penalties"),
        ("return mean_off_diagonal(within) +", "return within.mean() +", "penalties"),
        ("-1 / (n * m), dtype", "-2 / (n * m), dtype", "penalties"),
        ("weights.fill_diagonal_(0)", "weights", "penalties"),
        ("(as_large + 1) / (permutations + 1)", "as_large / permutations", "samplers"),
        ("(within_first - first @ diagonal)", "within_first", "samplers"),
        ("__init__(NegativeDistance())", "__init__(InverseMultiquadric())", "penalties"),
        ("share = 1 / self.dataset_size", "share = 0.0", "penalties"),
        ("(blocks.sum() - within.diagonal().sum())", "blocks.sum()", "penalties"),
        ("(within.sum() - blocks.sum())", "within.sum()", "penalties"),
    ],
    "wae_lightning/penalties/cramer_wold.py": [
        ("(4 / (3 * n)) ** 0.4", "(4 / (3 * n)) ** 0.2", "penalties"),
        ("self.prior_variance = prior.scale**2", "self.prior_variance = prior.scale", "penalties"),
        ("+ 2 * variance), d)", "+ variance), d)", "penalties"),
        ("np.cos(angles) ** (d - 2)", "np.cos(angles) ** (d - 1)", "penalties"),
        ("return grad * derivative", "return -grad * derivative", "penalties"),
        ("gamma = variance * (self", "gamma = (self", "penalties"),
    ],
    "wae_lightning/penalties/wasserstein.py": [
        ("return 2 * self.loss(in_full", "return self.loss(in_full", "penalties"),
        ("directions).argmax()", "directions).argmin()", "penalties"),
        ("(ordered - ordered_prior).square()", "(ordered - ordered_prior).abs()", "penalties"),
        ("F.normalize(worst + F", "F.normalize(worst - F", "penalties"),
        ("dtype=z.dtype), dim=0)", "dtype=z.dtype), dim=1)", "penalties"),
        ("squared.detach().cpu()", "squared.detach().sqrt().cpu()", "penalties"),
    ],
    "wae_lightning/penalties/adversarial.py": [
        (
            "self.gradient_penalty * gradient.square().sum(1)",
            "self.gradient_penalty * gradient.square().mean(1)",
            "gan",
        ),
        ("logits + self.prior.log_prob(z)", "logits - self.prior.log_prob(z)", "gan"),
        ("(of_codes.detach() < 0)", "(of_codes.detach() > 0)", "gan"),
        ("(of_prior.detach() > 0)", "(of_prior.detach() < 0)", "gan"),
        ("F.softplus(-self.logits(z))", "-F.softplus(self.logits(z))", "gan"),
        (
            "F.softplus(of_codes).mean() + F.softplus(-of_prior)",
            "F.softplus(-of_codes).mean() + F.softplus(of_prior)",
            "gan",
        ),
        ("parameter.requires_grad_(True)", "parameter.requires_grad_(False)", "gan"),
        ("betas=(0.5, 0.999)", "betas=(0.9, 0.999)", "gan"),
    ],
    "wae_lightning/joint_mmd.py": [
        ("- 2 * kernel.of_squared", "- kernel.of_squared", "conditional::test_joint_mmd_equals_a_double_loop"),
        (
            "feature_kernel(features, features) * difference",
            "difference",
            "conditional::test_joint_mmd_equals_a_double_loop",
        ),
        (
            "(weighted.sum() - weighted.diagonal().sum())",
            "weighted.sum()",
            "conditional::test_joint_mmd_equals_a_double_loop",
        ),
        ("+ 2.0 * self.num_features", "+ self.num_features", "conditional::test_the_scale_of_the_prior_counts"),
        (
            "prior.latent_dim + num_features, prior.scale)",
            "prior.latent_dim + num_features)",
            "conditional::test_the_scale_of_the_prior_counts",
        ),
    ],
    "wae_lightning/networks/pointnet.py": [
        ("0.5 * excess.square()", "excess.square()", "pointnet"),
        ("self.mlp(x).amax(1)", "self.mlp(x).mean(1)", "pointnet"),
        ("self.mlp(x).max(1).indices", "self.mlp(x).min(1).indices", "pointnet"),
        ("copy_(torch.eye(dim).flatten())", "zero_()", "pointnet"),
        ("(i - start + 0.5)", "(i - start)", "pointnet"),
        ("(i < num_points % patches)", "0", "pointnet"),
    ],
    "wae_lightning/networks/flow.py": [
        ("return logits.log_softmax(0).expand(n, -1)", "return logits.expand(n, -1)", "flow"),
        ("log_determinant + of_layer", "log_determinant - of_layer", "flow"),
        ("[:, order.argsort()", "[:, order", "flow"),
        ("return lower.clamp(1e-300, 1 - 1e-16), upper.clamp(1e-300, 1 - 1e-16)", "return lower, upper", "flow"),
        ("log_determinant - 0.5 * (z.square()", "log_determinant - (z.square()", "flow"),
        ("changed + shift) * log_scale.exp()", "changed + shift) * (-log_scale).exp()", "flow"),
        (
            "root = below.tril(-1) + torch.diag_embed(log_diagonal.exp())\n        #",
            "root = below.tril() + torch.diag_embed(log_diagonal.exp())\n        #",
            "flow",
        ),
        (
            "condition)).mean() / self.dim",
            "condition)).mean()",
            "flow::test_the_loss_of_a_flow_is_its_codes_negative_log_density_per_dimension",
        ),
        ("x = in_float64(z)", "x = in_full_precision(z)", "flow"),
        ("torch.minimum(lower, upper) <= 1e-6", "torch.minimum(lower, upper) < 0", "flow"),
    ],
    "wae_lightning/networks/convolutional.py": [
        (
            "low + (high - low) * to_pixels(y)",
            "low + high * to_pixels(y)",
            "house::test_the_default_decoder_keeps_to_the_range",
        ),
        ("(left, total[1] - left, top", "(total[1] - left, left, top", "convolutional"),
        ("(u - s) // 2 for", "(u - s + 1) // 2 for", "convolutional"),
        ("a=-2 * init_std, b=2 * init_std", "a=-init_std, b=init_std", "convolutional"),
        ("F.pad(grad, (0, right, 0, below))", "F.pad(grad, (right, 0, below, 0))", "convolutional"),
    ],
    "wae_lightning/networks/conditional.py": [
        (
            "(x.flatten(1) - mean) @",
            "x.flatten(1) @",
            "conditional::test_whitened_principal_components_are_those_of_an_svd",
        ),
        ("math.sqrt(len(x) - 1)", "len(x)", "conditional::test_whitened_principal_components_are_those_of_an_svd"),
        (
            "1e-4 * std[0], directions / std, 0)",
            "0, directions / std, 0)",
            "conditional::test_components_without_variance_are_not_blown_up",
        ),
    ],
    "wae_lightning/base.py": [
        (
            "self.flow.inverse(z / self.prior.scale)",
            "self.flow.inverse(z)",
            "flow::test_reconstructions_do_not_depend_on_the_flow",
        ),
        (
            "self.prior.scale * self.flow.to_normal(code)",
            "self.flow.to_normal(code)",
            "flow::test_reconstructions_do_not_depend_on_the_flow",
        ),
        (
            "codes + self.flow_noise * torch.randn_like(codes)",
            "codes",
            "flow::test_the_flow_is_trained_on_codes_with_noise_of_the_given_deviation",
        ),
        (
            "self.compared(x, code).detach()\n",
            "in_full_precision(code)\n",
            "flow::test_the_flow_learns_and_sends_no_gradient_to_the_encoder",
        ),
        ("self.prior.scale * code", "1.0 * code", "house::test_codes_of_variance_one_take_the_scale_of_the_prior"),
        ("return self.prior.project(code)", "return code", "base::test_codes_lie_in_the_support_of_the_prior"),
        ("on_input(x) if self.training else x", "on_input(x)", "base::test_noise_is_for_training_and_on_request"),
        (
            "self.noise(features) if noise else",
            "self.noise(features) if True else",
            "base::test_noise_is_for_training_and_on_request",
        ),
        (
            "with evaluation_mode(self):\n            return",
            "with torch.no_grad():\n            return",
            "house::test_samples_and_lines_are_drawn_in_evaluation_mode",
        ),
        (
            "with evaluation_mode(self):\n            start",
            "with torch.no_grad():\n            start",
            "house::test_samples_and_lines_are_drawn_in_evaluation_mode",
        ),
        (
            "self.prior.sample(n, generator, self",
            "self.prior.sample(n, None, self",
            "base::test_samples_are_decoded_draws_from_the_prior",
        ),
        (
            "repeat_interleave(codes_per_input, dim=0)",
            "repeat(codes_per_input, 1)",
            "base::test_codes_of_one_input_stand_in_consecutive_rows",
        ),
        (
            "self.inputs_of(batch), noise=False)",
            "self.inputs_of(batch), noise=True)",
            "base::test_predict_returns_codes_and_reconstructions",
        ),
        (
            "REMEMBERED_CODES = 10_000",
            "REMEMBERED_CODES = 1_000",
            "samplers::test_only_about_ten_thousand_codes_are_kept",
        ),
    ],
    "wae_lightning/steps.py": [
        (
            '"penalty": self.penalty_weight}',
            '"penalty": 1.0}',
            "base::test_logs_cost_and_penalty_and_their_weighted_sum",
        ),
        (
            '+ terms["flow_loss"] - terms["flow_loss"].detach()',
            '+ terms["flow_loss"]',
            "house::test_the_flow_s_loss_is_no_part_of_the_logged_loss",
        ),
        (
            "self.memory.remember(compared)\n        return",
            "return",
            "samplers::test_a_checkpoint_keeps_the_latest_training_codes",
        ),
        (
            "codes + excess * (codes - codes.detach()), past",
            "codes, past",
            "base::test_past_codes_leave_the_penalty_its_weight",
        ),
        (
            "self.penalty_of(self._with_past_codes(compared))",
            "self.penalty_of(compared)",
            "base::test_the_penalty_of_a_step_sees_the_codes_of_the_steps_before",
        ),
        (
            "self.code_queue % self.penalty",
            "0 * self.penalty",
            "house::test_a_queue_holds_whole_inputs_for_a_penalty_of_several_codes",
        ),
        ("if not self.gather_codes or", "if True or", "distributed"),
        ("all_gather(codes.contiguous())", "all_gather(codes.detach().contiguous())", "distributed"),
        (
            "batch_size=len(codes), sync_dist",
            "batch_size=1, sync_dist",
            "base::test_what_is_logged_is_the_mean_over_all_examples",
        ),
        (
            "self._from_code(codes[:, : self.latent_dim].float(), features[:, self.latent_dim :])",
            "codes[:, : self.latent_dim].float()",
            "callbacks::test_the_codes_shown_are_behind_the_flow",
        ),
        ('if dataloader_idx else ""', 'if False else ""', "house::test_several_validation_loaders"),
    ],
    "wae_lightning/memory.py": [
        (
            "batch[-count:]",
            "batch[:count]",
            "flow::test_the_flow_sees_the_codes_of_the_last_batches_whatever_their_size",
        ),
        ("codes.detach().clone()", "codes.clone()", "house::test_the_memory_keeps_its_codes_through_a_state_dict"),
        (">= self.capacity:", ">= 2 * self.capacity:", "house::test_the_memory_keeps_its_codes_through_a_state_dict"),
        (
            "in reversed(self._batches)",
            "in self._batches",
            "house::test_the_memory_keeps_its_codes_through_a_state_dict",
        ),
    ],
    "wae_lightning/drawing.py": [
        (
            "return prior.project(lines.flatten(0, 1)).view_as(lines) if",
            "return lines if",
            "base::test_lines_lead_from_one_code_to_the_other_on_a_sphere_too",
        ),
        (
            "torch.linspace(0, 1, steps,",
            "torch.linspace(0, 1 - 1 / steps, steps,",
            "base::test_lines_lead_from_one_code_to_the_other_on_a_sphere_too",
        ),
        (
            "ends = 2 * model.prior.scale *",
            "ends = 2 *",
            "generate::test_a_traversal_goes_as_far_as_the_prior",
        ),
        (
            "svd(draws - draws.mean(0),",
            "svd(draws,",
            "lines::test_traversals_follow_the_principal_directions_of_the_codes",
        ),
        (
            "module.training = True",
            "module.training = False",
            "house::test_samples_and_lines_are_drawn_in_evaluation_mode",
        ),
    ],
    "wae_lightning/conditional.py": [
        (
            "x.repeat_interleave(n, dim=0), z)",
            "x.repeat(n, 1, 1, 1), z)",
            "conditional::test_completions_of_given_codes",
        ),
        (
            "self.prior.sample(size * n, generator",
            "self.prior.sample(size * n, None",
            "conditional::test_completions_of_given_codes",
        ),
        (
            "self.prior.sample(size * n, generator, self.device)",
            "torch.randn(size * n, d, generator=generator)",
            "conditional::test_the_scale_of_the_prior_counts",
        ),
        (
            "self.features(in_full_precision(x))",
            "self.features(in_full_precision(x * 0))",
            "conditional::test_the_features_are_those_of_the_observed_part",
        ),
        (
            "if self.training else part for",
            "if True else part for",
            "conditional::test_noise_on_the_input_is_for_training",
        ),
    ],
    "wae_lightning/report.py": [
        ("_features(pair[:1])", "_features((pair[0] * 0,))", "conditional::test_report_mode_is_the_report_s_model"),
        (
            "expand(-1, n, -1, -1, -1)",
            "expand(-1, n, -1, -1, -1) * 0.5",
            "conditional::test_report_mode_is_the_report_s_model",
        ),
    ],
    "wae_lightning/likelihood.py": [
        (
            "return self.prior.scale * mean, torch",
            "return mean, torch",
            "conditional::test_the_posterior_is_what_the_encoder_draws_from",
        ),
        (
            "self.prior.scale * self.noise.std",
            "self.noise.std",
            "conditional::test_the_posterior_is_what_the_encoder_draws_from",
        ),
        (
            "log_likelihood + log_prior - log_q",
            "log_likelihood - log_q",
            "conditional::test_importance_weights_against_the_densities_of_torch",
        ),
        (
            "self.prior.log_prob(codes)",
            "self.prior.log_prob(epsilon.flatten(0, 1))",
            "conditional::test_importance_weights_against_the_densities_of_torch",
        ),
        (
            "epsilon.square() + std.log() + 0.5",
            "epsilon.square() + 0.5",
            "conditional::test_importance_weights_against_the_densities_of_torch",
        ),
    ],
    "wae_lightning/references.py": [
        ("- 1 - variance.log()", "- 1 + variance.log()", "references"),
        ("mean + variance.sqrt() *", "mean + variance *", "references"),
    ],
    "wae_lightning/pointnet.py": [
        (
            "way * (partner - own.detach())",
            "way * (partner - own)",
            "pointnet::test_a_coupled_code_lies_between_code_and_partner",
        ),
        (
            "device=x.device) < self.coupling",
            "device=x.device) > self.coupling",
            "pointnet::test_a_coupled_code_lies_between_code_and_partner",
        ),
        (
            "(own.float() - partner).square().mean()",
            "(own.float() - partner).square().sum()",
            "pointnet::test_a_coupled_code_lies_between_code_and_partner",
        ),
        ("* scale @ rotation.transpose", "/ scale @ rotation.transpose", "pointnet::test_upright_pose_undoes_turns"),
        ("pow(3).sum", "pow(1).sum", "pointnet::test_the_first_axis_points_to_the_side_of_positive_skewness"),
        (
            ".sum(2).mean(1).sqrt().clamp",
            ".sum(2).amax(1).sqrt().clamp",
            "pointnet::test_sets_are_encoded_at_root_mean_square_radius_one",
        ),
        (
            "self.coupled_codes - len(code)",
            "0 * len(code)",
            "pointnet::test_partners_are_assigned_together_with_the_codes_before",
        ),
        (
            "draws = self.prior_like(codes)",
            "draws = torch.randn_like(codes)",
            "pointnet::test_partners_are_of_the_scale_of_the_prior",
        ),
        (
            'weights["coupling"] = self.coupling_weight',
            'weights["coupling"] = self.coupling',
            "house::test_terms_have_one_name_and_one_meaning_in_training_and_validation",
        ),
        ("if radius > 100:", "if radius > 1e9:", "pointnet::test_clouds_far_from_normalised_are_named"),
    ],
    "wae_lightning/parts.py": [
        ("    bound.apply_defaults()\n", "", "parts"),
    ],
    "wae_lightning/checkpoints.py": [
        (
            "if claimed > size:",
            "if False:",
            "checkpoints::test_a_checkpoint_that_claims_more_than_it_holds_is_refused_unread",
        ),
        ("if claimed > held:", "if False:", "parts checkpoints::test_a_model_larger_than_its_weights_is_not_made"),
    ],
    "wae_lightning/pretrained.py": [
        ("value.half() if half and", "value if half and", "pretrained"),
        (
            "found = model.load_state_dict",
            "found = build_bounded(description, weights, trust, given).load_state_dict",
            "pretrained",
        ),
    ],
    "wae_lightning/loading.py": [
        (
            "            model.load_state_dict(weights, strict=strict)\n",
            "",
            "base::test_a_checkpoint_is_plain_data_and_needs_nothing_else",
        ),
    ],
    "wae_lightning/training/two_optimizers.py": [
        (
            "for _ in range(penalty.steps):",
            "for _ in range(1):",
            "gan::test_several_critic_steps_for_one_of_the_autoencoder",
        ),
        (
            "update(model, critic, model.penalty_weight * loss)",
            "update(model, critic, loss)",
            "gan::test_training_equals_the_algorithm_written_out",
        ),
        ('reduce(gradient, reduce_op="mean")', 'reduce(gradient, reduce_op="sum")', "distributed"),
        (
            "model.objective(terms) / len(inputs)",
            "model.objective(terms)",
            "gan::test_training_equals_the_algorithm_written_out",
        ),
        (
            "if (batch_idx + 1) % trainer.acc",
            "if batch_idx % trainer.acc",
            "gan::test_training_equals_the_algorithm_written_out",
        ),
        (
            "            update(model, critic, model.penalty_weight * loss)\n",
            # the critic is updated after the auto-encoder
            "            step = type(autoencoder).step\n"
            "            autoencoder.step = lambda loss=loss: (\n"
            "                step(autoencoder), update(model, critic, model.penalty_weight * loss))\n",
            "gan::test_training_equals_the_algorithm_written_out",
        ),
    ],
    "wae_lightning/training/flags.py": [
        ("if trainer.gradient_clip_val:", "if False:", "gan::test_training_equals_the_algorithm_written_out"),
        ("= trainer.gradient_clip_val, trainer.acc", "= None, trainer.acc", "gan::test_the_trainer_keeps_its_settings"),
    ],
    "wae_lightning/training/finite.py": [
        ("any(bad)\n", "False\n", "finite"),
        ("if self._batch is None or", "if True or", "finite"),
    ],
    "wae_lightning/training/inputs.py": [
        (
            'self._look(trainer, "prediction", batch, batch_idx)',
            "pass",
            "base::test_predict_checks_its_batches_as_training_does",
        ),
        ("low <= high <= input_range", "low <= low <= input_range", "house::test_a_later_batch_out_of_range_is_named"),
        (
            "batch[0] if isinstance(batch, list | tuple) and batch",
            "batch[-1] if isinstance(batch, list | tuple) and batch",
            "base::test_trains_on_any_data_loader",
        ),
    ],
    "wae_lightning/training/pretrain.py": [
        (
            "if trainer.global_step:",
            "if False:",
            "base::test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one",
        ),
        (
            "(z.T.cov() - z_prior.T.cov())",
            "(z.var(0) - z_prior.var(0))",
            "base::test_the_mismatch_of_moments_is_that_of_numpy",
        ),
        ("< 0.1:", "< 10:", "base::test_pretraining_matches_the_moments_of_the_codes"),
        (
            "        optimizer.zero_grad()\n",
            "        pass\n",
            "house::test_pretraining_leaves_no_gradient_to_the_first_step",
        ),
    ],
    "wae_lightning/training/resume.py": [
        (
            'torch.set_rng_state(state["cpu"].cpu())',
            "pass",
            "base::test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one",
        ),
        (
            "if not (loop.restarted_mid_epoch or",
            "if not (True or",
            "base::test_a_resumed_run_of_a_shuffled_loader_goes_on_as_the_whole_one",
        ),
    ],
    "wae_lightning/training/schedulers.py": [
        (
            'config.interval == "step" and not',
            'config.interval == "epoch" and not',
            "gan::test_schedulers_step_each_epoch_each_step_and_on_a_plateau",
        ),
    ],
    "wae_lightning/training/optimizers.py": [
        (
            'group["lr"] = lr',
            'group["lr"] = 2 * lr',
            "foreign_use::test_the_learning_rate_finder_sets_our_learning_rate",
        ),
        (
            'config["interval"] = "step"',
            'config["interval"] = "epoch"',
            "base::test_one_cycle_takes_its_length_from_the_trainer",
        ),
        ('"frequency": NEVER', '"frequency": 1', "base::test_a_plateau_is_left_once_an_epoch"),
    ],
    "wae_lightning/training/features.py": [
        (
            "if self.features.fitted:",
            "if False:",
            "conditional::test_features_are_fitted_once_and_stay_in_the_checkpoint",
        ),
        (
            "with torch.random.fork_rng(devices=[]):",
            "if True:",
            "conditional::test_fitting_features_leaves_no_trace_in_the_generator",
        ),
    ],
    "wae_lightning/training/interruption.py": [
        (
            "os.replace(unfinished, path)",
            "path.write_bytes(unfinished.read_bytes())",
            "interruption::test_a_checkpoint_takes_the_place_of_another_at_once",
        ),
    ],
    "wae_lightning/metrics/images.py": [
        ("_share_inside(samples, real, _radii(real,", "_share_inside(real, samples, _radii(samples,", "image_metrics"),
        ("0.299, 0.587, 0.114", "0.114, 0.587, 0.299", "image_metrics"),
        ("kthvalue(k + 1, dim=1)", "kthvalue(k, dim=1)", "image_metrics"),
        ("self.real if real else self.samples", "self.samples if real else self.real", "image_metrics"),
        ("0.0, 1, 0], [1, -4, 1]", "0.0, 1, 0], [1, -3, 1]", "image_metrics"),
        ("self.count += len(images)", "self.count += 1", "image_metrics"),
    ],
    "wae_lightning/metrics/point_clouds.py": [
        ("torch.unique(across.argmin(1))", "torch.unique(across.argmin(0))", "point_metrics"),
        ('"MMD": across.amin(0).mean()', '"MMD": across.amin(1).mean()', "point_metrics"),
        ('"nearest real": across.amin(1)', '"nearest real": across.amin(0)', "point_metrics"),
        ("fill_diagonal_(torch.inf)", "fill_diagonal_(0)", "point_metrics"),
        ("mean(1) + matrices.amin(1)", "mean(1) + matrices.amin(2)", "point_metrics"),
        ("(nearest < n) ==", "(nearest < n) !=", "point_metrics"),
        ("/ (2 * math.log(2))", "/ math.log(2)", "point_metrics"),
        ("reconstructions / inputs}", "inputs / reconstructions}", "point_metrics"),
        (".relu().square()", ".relu()", "point_metrics"),
    ],
    "wae_lightning/metrics/completion.py": [
        ("(n * (n - 1))", "n**2", "completion_metrics"),
        ("math.log(log_weights.shape[1]) - ", "-", "completion_metrics"),
        ("* (len(x) - 1) / (", "* len(x) / (", "completion_metrics"),
        (
            "(completions < truth",
            "(completions > truth",
            "completion_metrics::test_a_rank_counts_the_completions_below_the_truth",
        ),
        ("bce.amin(1)", "bce.amax(1)", "completion_metrics"),
        ("psnr.amax(1)", "psnr.amin(1)", "completion_metrics"),
        ("_psnr(ys.mean(1), y, pixels)", "_psnr(ys[:, 0], y, pixels)", "completion_metrics"),
        ("spread / torch.stack(real).mean()", "torch.stack(real).mean() / spread", "completion_metrics"),
        ("0.5 * (shares -", "(shares -", "completion_metrics"),
        ("- 2 * roots.sum()", "- roots.sum()", "completion_metrics"),
        ("in_float64(rows - rows.mean(0))", "in_float64(rows)", "completion_metrics"),
    ],
    "wae_lightning/evaluation/images.py": [
        (
            "metric.update(real, real=True)\n        metric.update(samples, real=False)",
            "metric.update(samples, real=True)\n        metric.update(real, real=False)",
            "evaluation::test_samples_are_compared_with_test_images_and_the_floor_is_of_training_images",
        ),
        (
            "comparison.measure(shown(model, training))",
            "comparison.measure(shown(model, read_test_images(data)))",
            "evaluation::test_samples_are_compared_with_test_images_and_the_floor_is_of_training_images",
        ),
        (
            "= MixtureSampler(codes, components, seed=seed)",
            "= model.prior",
            "evaluation::test_samples_are_compared_with_test_images_and_the_floor_is_of_training_images",
        ),
        (
            "comparison.measure(shown(model, reconstructions), only_distances=True)",
            "comparison.measure(shown(model, read_test_images(data)), only_distances=True)",
            "evaluation::test_samples_are_compared_with_test_images_and_the_floor_is_of_training_images",
        ),
        (
            "kid.compute()[0]",
            "kid.compute()[1]",
            "evaluation::test_samples_are_compared_with_test_images_and_the_floor_is_of_training_images",
        ),
        (
            "-float(decibels) / 10",
            "-float(decibels) / 20",
            "evaluation::test_pictures_and_codes_are_measured_as_defined",
        ),
        (
            "(reconstruct(x) for x in read_test_images(data, model.device, model.input_key))",
            "read_test_images(data)",
            "evaluation::test_pictures_and_codes_are_measured_as_defined",
        ),
        (
            "measure_sharpness(shown(model, read_test_images(data, key=model.input_key)))",
            "measure_sharpness(shown(model, (model.sample(n, generator) for n in sizes)))",
            "evaluation::test_pictures_and_codes_are_measured_as_defined",
        ),
        (
            '(("training", training_codes), ("test", torch.cat(codes)))',
            '(("test", training_codes), ("training", torch.cat(codes)))',
            "evaluation::test_pictures_and_codes_are_measured_as_defined",
        ),
        (
            "        count -= len(images)\n",
            "",
            "evaluation::test_samples_are_compared_with_test_images_and_the_floor_is_of_training_images",
        ),
        (
            "data.batch_size = batch_size",
            "pass",
            "evaluation::test_samples_are_compared_with_test_images_and_the_floor_is_of_training_images",
        ),
    ],
    "wae_lightning/evaluation/codes.py": [
        (
            'check_range(x, model.input_range, f"batch {number}")',
            "pass",
            "base::test_predict_checks_its_batches_as_training_does",
        ),
        ("model.cost(target, reconstruction)", "model.cost(target, target)", "generate::test_codes_of_a_folder"),
        ("(z.std(0) / scale).min()", "z.std(0).min()", "evaluation::test_pictures_and_codes_are_measured_as_defined"),
        ("(z.std(0) / scale).max()", "z.std(0).max()", "evaluation::test_pictures_and_codes_are_measured_as_defined"),
        (
            "kernel.set_expected_squared_distance(model.prior.expected_squared_distance)",
            "kernel.set_expected_squared_distance(1.0)",
            "evaluation::test_pictures_and_codes_are_measured_as_defined",
        ),
        (
            "model.prior.sample(len(some))",
            "torch.randn(some.shape)",
            "evaluation::test_pictures_and_codes_are_measured_as_defined",
        ),
    ],
    "wae_lightning/evaluation/clouds.py": [
        ('"MMD-CD x1e3": 1e3 *', '"MMD-CD x1e3": 1e4 *', "evaluation::test_sets_of_clouds_are_compared_as_defined"),
        (
            'training cloud x1e3": 1e3 *',
            'training cloud x1e3": 1e4 *',
            "evaluation::test_sets_of_clouds_are_compared_as_defined",
        ),
        ('1e2 * found_emd["MMD"]', '1e3 * found_emd["MMD"]', "evaluation::test_sets_of_clouds_are_compared_as_defined"),
        ('"CD x1e3": 1e3 *', '"CD x1e3": 1e4 *', "evaluation::test_reconstructions_of_clouds_are_compared_as_defined"),
        ("1e2 * float(emd)", "1e3 * float(emd)", "evaluation::test_reconstructions_of_clouds_are_compared_as_defined"),
        ("if turn and not train else", "if turn else", "evaluation::test_only_the_test_clouds_are_turned"),
        (
            "flow, model.flow = model.flow, None",
            "flow = model.flow",
            "evaluation::test_codes_are_read_before_the_flow_and_the_model_is_left_as_it_was",
        ),
        (
            "    model.flow = flow\n",
            "",
            "evaluation::test_codes_are_read_before_the_flow_and_the_model_is_left_as_it_was",
        ),
        (
            "model.invariance = trained_with",
            "pass",
            "evaluation::test_codes_are_read_before_the_flow_and_the_model_is_left_as_it_was",
        ),
        (
            "(True, real), (False, samples)):\n        metric",
            "(False, real), (True, samples)):\n        metric",
            "evaluation::test_sets_of_clouds_are_compared_as_defined",
        ),
        (
            "(reconstruction - reconstruction.mean(1, keepdim=True)).square().sum(2)",
            "reconstruction.square().sum(2)",
            "evaluation::test_reconstructions_of_clouds_are_compared_as_defined",
        ),
    ],
    "wae_lightning/evaluation/completions.py": [
        (
            "F.dropout(x, 0.2, self.training)",
            "F.dropout(x, 0.2, True)",
            "evaluation::test_the_label_net_is_scaled_to_the_validation_set_and_has_no_dropout",
        ),
        (
            "self.scale = min(scales",
            "self.scale = max(scales",
            "evaluation::test_the_label_net_is_scaled_to_the_validation_set_and_has_no_dropout",
        ),
        (
            "last.bias *= self.scale",
            "pass",
            "evaluation::test_the_label_net_is_scaled_to_the_validation_set_and_has_no_dropout",
        ),
    ],
    "wae_lightning/callbacks/codes.py": [
        (
            "values.abs().argsort(descending=True)",
            "values.argsort(descending=True)",
            "callbacks::test_the_directions_are_those_of_the_largest_deviation",
        ),
        (
            "(z - center).double(), (z_prior - center).double()",
            "(z - z.mean(0)).double(), (z_prior - center).double()",
            "callbacks::test_a_shift_of_the_codes_is_a_deviation",
        ),
        (
            "1.1 * float(z_prior",
            "1.1 * float(points",
            "callbacks::test_the_scale_is_the_priors_until_codes_lie_outside",
        ),
    ],
    "wae_lightning/callbacks/images.py": [
        (
            "lines.transpose(0, 1).flatten",
            "lines.flatten",
            "callbacks::test_pictures_have_the_right_images_in_the_right_places",
        ),
        (
            "model.interpolate(inputs[:half], inputs[half : 2 * half]",
            "model.interpolate(inputs[half : 2 * half], inputs[:half]",
            "callbacks::test_pictures_have_the_right_images_in_the_right_places",
        ),
    ],
    "wae_lightning/callbacks/pictures.py": [
        ("(images - low) / (high - low)", "images - low", "callbacks::test_pictures_have_the_range_of_the_inputs"),
        (
            "with torch.random.fork_rng(devices), ",
            "with ",
            "callbacks::test_what_is_computed_beside_training_gives_the_random_state_back",
        ),
    ],
    "wae_lightning/callbacks/completions.py": [
        (
            "pairs.show(x), pairs.join(x, y)",
            "pairs.join(x, y), pairs.join(x, y)",
            "conditional::test_the_picture_shows_observed_part_truth_and_completions",
        ),
        (
            "(variance / (x.flatten",
            "(-variance / (x.flatten",
            "conditional::test_the_ambiguous_parts_are_those_whose_neighbours_disagree",
        ),
    ],
    "wae_lightning/callbacks/completion_measures.py": [
        ("        self._left -= len(x)\n", "", "conditional::test_likelihoods_are_of_as_many_images_as_asked"),
        ("100, prior=True)", "100)", "conditional::test_likelihoods_are_of_as_many_images_as_asked"),
        ("-weights.mean(1)", "-weights.amin(1)", "conditional::test_likelihoods_are_of_as_many_images_as_asked"),
    ],
    "wae_lightning/callbacks/sample_quality.py": [
        (
            "feature=DigitFeatures(), reset_real_features=False",
            "feature=DigitFeatures()",
            "sample_quality::test_it_is_measured_first_and_then_after_every_so_many_epochs",
        ),
        (
            "(trainer.current_epoch + 1) % self.every",
            "trainer.current_epoch % self.every",
            "sample_quality::test_it_is_measured_first_and_then_after_every_so_many_epochs",
        ),
    ],
    "wae_lightning/cli/train.py": [
        ("round(cpu_seconds, 1)", "round(seconds, 1)", "train::test_cpu_seconds_are_those_of_the_processor"),
        (
            "seed_everything(self.config.seed_everything or 0",
            "(lambda *_, **__: None)(0",
            "flags::test_the_same_weights_have_the_same_test_metrics_after_a_resume",
        ),
    ],
    "wae_lightning/cli/inputs.py": [
        (
            "low + (high - low) * read_images",
            "read_images",
            "generate::test_pictures_of_a_model_of_another_range",
        ),
    ],
    "datamodules/mnist_files.py": [
        (
            "if set_named_in(path.name) not in (None, name):",
            "if False:",
            "mnist::test_tables_of_one_set_are_not_taken_for_another",
        ),
    ],
    "wae_lightning/cli/generate.py": [
        (
            "model.interpolate(z[:-1], z[1:]",
            "model.interpolate(z[1:], z[:-1]",
            "generate::test_lines_lead_from_input_to_input",
        ),
        (
            'rows[1] if what == "reconstruction"',
            'rows[0] if what == "reconstruction"',
            "generate::test_pictures_of_any_size_are_reconstructed",
        ),
    ],
    "datamodules/base.py": [
        ("drop_last=len(order) >= self.batch_size", "drop_last=False", "modelnet40"),
        ("order[validation:].sort()", "order.sort()", "mnist"),
        ("manual_seed(seed))\n    return order[", "manual_seed(0))\n    return order[", "mnist"),
    ],
    "datamodules/images.py": [
        ("div_(255)", "div_(256)", "mnist"),
    ],
    "datamodules/mnist.py": [
        ("self.val_set = Images(train.images, train.labels, val_rows)", "self.val_set = test", "mnist"),
    ],
    "datamodules/cached_images.py": [
        ("self.trainer is not None and self.trainer.training:", "self.trainer is not None:", "celeba"),
    ],
    "datamodules/celeba.py": [
        ('"attributes": attributes > 0', '"attributes": attributes < 0', "celeba"),
    ],
    "datamodules/pairs.py": [
        ("self.images.on_after_batch_transfer(batch, dataloader_idx)", "batch", "half_images"),
    ],
    "datamodules/cache.py": [
        (
            "os.replace(temporary, path)",
            "path.write_bytes(temporary.read_bytes())",
            "cache::test_finished_file_takes_the_place_of_another_at_once",
        ),
        ("int(rows[place]) * size", "place * size", "celeba"),
        (" {stat.st_mtime_ns}", "", "cache"),
    ],
    "datamodules/order.py": [
        ("SeedSequence([self.seed, self.epoch])", "SeedSequence([self.seed])", "order"),
        ("torch.arange(rank, len(self)", "torch.arange(0, len(self)", "order"),
        ("batches[first:], seeds[first:]", "batches, seeds", "order"),
    ],
    "datamodules/modelnet40.py": [
        ("self.trainer is not None and self.trainer.training:", "self.trainer is not None:", "modelnet40"),
        ("(x, z, -y) if", "(x, -z, y) if", "modelnet40"),
        ("rows, fresh=True)", "rows)", "modelnet40"),
    ],
    "datamodules/clouds.py": [
        ("clouds - (low + high) / 2", "clouds - clouds.mean(1, keepdim=True)", "clouds"),
        ("clouds.norm(dim=2).amax(dim=1)", "clouds.norm(dim=2).mean(dim=1)", "clouds modelnet40"),
    ],
    "datamodules/shapes.py": [
        ("np.sqrt(bottom**2 + share * (top**2 - bottom**2))", "(bottom + share * (top - bottom))", "shapes"),
        ("np.where(s + t > 1, 1 - s, s), np", "s, np", "shapes"),
        ("areas / areas.sum()", "np.ones(len(areas)) / len(areas)", "shapes"),
        ("np.where(2 * rng.random(n) < 1 + tube / ring * np.cos(t), t, np.pi - t)", "t", "shapes"),
    ],
    "experiments/reproduce/figures.py": [
        (
            '["WAE-MMD", "WAE-GAN"], names',
            '["WAE-GAN", "WAE-MMD"], names',
            "reproduce::test_each_model_stands_under_its_own_name",
        ),
        (
            "[chosen, : data.num_points]",
            "[chosen, : data.num_points] * 0",
            "reproduce::test_the_pictures_of_clouds_stand_under_their_names",
        ),
    ],
    "experiments/reproduce/mnist_results.py": [
        ("statistics.stdev(v)", "statistics.pstdev(v)", "reproduce::test_runs_of_a_row_have_mean_and_deviation"),
        ('if run["seed"] != new["seed"]]', "]", "reproduce::test_runs_of_a_row_have_mean_and_deviation"),
    ],
    "experiments/reproduce/point_cloud_results.py": [
        (
            "1e3 * float(chamfer_distance(halves",
            "1e4 * float(chamfer_distance(halves",
            "reproduce::test_the_baselines_of_clouds_are_what_they_are_called",
        ),
        ("exact.argmin(0)", "exact.argmax(0)", "reproduce::test_the_baselines_of_clouds_are_what_they_are_called"),
        (
            "compare_sets(train[picked], test, train)",
            "compare_sets(test, test, train)",
            "reproduce::test_the_baselines_of_clouds_are_what_they_are_called",
        ),
    ],
    "experiments/reproduce/completion_results.py": [
        (
            "topk(10, largest=False)",
            "topk(10)",
            "reproduce::test_donors_are_the_ten_training_images_nearest_in_the_observed_part",
        ),
        (
            "(fit(120) - fit(20)) / 100",
            "(fit(120) - fit(20)) / 120",
            "reproduce::test_each_model_trains_for_the_time_that_is_given",
        ),
        ("    model.load_state_dict(weights)\n", "", "reproduce::test_each_model_trains_for_the_time_that_is_given"),
        (
            "r_squared(observed.flatten(1), model",
            "r_squared(hidden.flatten(1), model",
            "reproduce::test_the_share_of_codes_that_the_observed_pixels_explain",
        ),
    ],
}  # fmt: skip

FAULTS = [Fault(file, *fault) for file, faults in _FAULTS.items() for fault in faults]

"""Who says the values that a policy is trained against."""

from lit_align.models.value import new_critic
from lit_align.types import Critic, Policy, UserError


def critic_of(policy: Policy, critic: Critic | None) -> Critic | None:
    """The critic that goes with a policy: the one that is given, none where the policy has a value head, else a new one.

    Raises:
        UserError: if there would be two, it reads other tokens than the policy, or none can be made of this kind of policy.
    """
    if policy.value_head is not None and critic is not None:
        raise UserError(
            "There should be one critic, but the policy has value_head: true and there is a critic beside it. Leave one of them out: the "
            "head shares the policy's trunk, `critic` has one of its own."
        )
    if critic is not None:
        critic.check(policy)
    return new_critic(policy) if critic is None and policy.value_head is None else critic
